"""A sweep to start from:  python launchers/local_queue.py examples/sweeps/ppo_cartpole.py

Two ways to limit PPO's steps, at two learning rates, with three seeds: twelve runs, each well under a minute.
"""

from sweep_queue import Slots, Sweep

SWEEP = Sweep(
    recipe="ppo_cartpole",
    settings={"total_env_steps": 50_000},
    variants={
        "clip": {"algo.objective": "clip"},
        "penalty": {"algo.objective": "kl_penalty", "algo.kl_target": 0.01},
    },
    grid={"algo.learning_rate": [3e-4, 1e-3]},
    seeds=range(3),
    slots=Slots(cpus_per_run=1),
)
