"""Agents back from their folders: what they do step by step is what evaluations of the run do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.envs.base import env_seed
from rlsurreal.models import ActorCritic
from rlsurreal.recipes import debug, dqn_cartpole, sac_pendulum
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import CountingEnv, NestedEnv, RecallEnv
from rlsurreal.trained import TrainedAgent, _ToEnv, film_problem, load_agent, load_experiment
from rlsurreal.utils.files import latest_checkpoint, list_checkpoints
from rlsurreal.utils.seeding import derive_seed
from rlsurreal.utils.spaces import random_actions, to_env_action

torch.set_num_threads(1)


def actor_critic(env: GymnasiumEnv, **kwargs: Any) -> Trainer:
    return replace(
        debug(),
        agent=ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (8,), **kwargs})),
        algo=PPO(num_epochs=1, num_minibatches=1),
        sampler=SerialSampler(env=env, batch=BatchSpec(num_steps=16, num_envs=2)),
    )


EXPERIMENTS: dict[str, Any] = {
    "ppo": debug,
    "dqn": dqn_cartpole,
    "actions with bounds": sac_pendulum,
    "memory": lambda: actor_critic(GymnasiumEnv(factory=RecallEnv), recurrent="lstm", recurrent_size=8),
    "nested": lambda: actor_critic(GymnasiumEnv(factory=NestedEnv)),
}


def train(experiment: Trainer, tmp_path: Any) -> Any:
    quiet = {"root": str(tmp_path), "console": "off", "tensorboard": False, "eval_interval_steps": None}
    return replace(experiment, total_env_steps=64, **quiet).train()


def play(agent: TrainedAgent, seed: int, **options: Any) -> tuple[float, list[Any]]:
    env, total, ended, actions = agent.make_env(), 0.0, False, []
    observation, _ = env.reset(seed=seed)
    reward = 0.0
    agent.reset()
    while not ended:
        actions.append(agent.act(observation, reward, **options))
        assert env.action_space.contains(actions[-1])
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        total, ended = total + float(reward), terminated or truncated
    env.close()
    return total, actions


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_acting_step_by_step_is_what_an_evaluation_does(name, tmp_path):
    agent = load_agent(train(EXPERIMENTS[name](), tmp_path))
    seed = env_seed(derive_seed(7, "evaluation"), 0)
    for _ in range(2):  # the agent is built anew in between
        (game,) = agent.evaluate(1, seed=7)
        total, actions = play(agent, seed)
        assert total == pytest.approx(game.total_reward, rel=1e-5) and len(actions) == game.length
    assert len(agent.evaluate(6)) == 6


def test_an_agent_with_memory_wants_rewards(tmp_path):
    agent = load_agent(train(EXPERIMENTS["memory"](), tmp_path))
    env = agent.make_env()
    observation, _ = env.reset(seed=0)
    observation, *_ = env.step(agent.act(observation))  # the first needs none
    with pytest.raises(ValueError, match=r"the agent has memory.*act\(observation, reward\)"):
        agent.act(observation)
    agent.reset()
    agent.act(observation)


def test_two_agents_of_one_experiment_do_not_share_weights(tmp_path):
    experiment = EXPERIMENTS[next(iter(EXPERIMENTS))]()
    folder = train(experiment, tmp_path)
    trained = experiment.agent.module
    agent = load_agent(folder, experiment=experiment)
    env = agent.make_env()
    observation, _ = env.reset(seed=1)
    agent.reset()
    first = agent.act(observation)
    other = load_agent(folder, experiment=experiment)
    other.reset()
    other.act(observation)
    with torch.no_grad():
        for parameter in other._agent.module.parameters():
            parameter.fill_(3.0)
    agent.reset()
    np.testing.assert_array_equal(agent.act(observation), first)
    assert experiment.agent.module is trained


def test_actions_are_drawn_if_asked(tmp_path):
    agent = load_agent(train(sac_pendulum(), tmp_path), "latest")
    first, second = (np.array(play(agent, 3, deterministic=False)[1]) for _ in range(2))
    assert not np.array_equal(first, second) and np.abs(first).max() > 1, "in the environment's units: up to 2"


def test_evaluations_are_as_the_experiments_were(tmp_path):
    experiment = sac_pendulum()
    for drawn in (True, False):
        sampler = replace(experiment.sampler, evaluation=EvalSpec(deterministic=not drawn))
        agent = load_agent(train(replace(experiment, sampler=sampler), tmp_path))
        found, *kinds = ([g.score for g in agent.evaluate(2, deterministic=d)] for d in (None, True, False))
        assert (found == kinds[drawn]) and (found != kinds[not drawn])


def test_a_checkpoint_that_was_kept_is_found_by_its_steps(tmp_path):
    kept = CheckpointPolicy(keep="all", interval_steps=16)
    folder = train(replace(actor_critic(GymnasiumEnv(factory="CartPole-v1")), checkpoints=kept), tmp_path)
    (first, path), *_, (last, _) = list_checkpoints(folder / "checkpoints")
    assert first < last and load_agent(folder, first).path == load_agent(folder, str(first)).path == path


def test_classes_of_the_script_that_runs(tmp_path, monkeypatch):
    class Local(CountingEnv):
        """No other process finds this one by name."""

    experiment = actor_critic(GymnasiumEnv(factory=Local))
    folder = train(experiment, tmp_path)
    with pytest.raises(ValueError, match=r"sampler.env.factory: .*Local.*experiment"):
        load_agent(folder)
    agent = load_agent(folder, experiment=experiment)
    assert len(agent.evaluate(2)) == 2


def test_a_run_that_kept_no_checkpoint_says_so(tmp_path):
    folder = train(replace(debug(), checkpoints=CheckpointPolicy(keep="none")), tmp_path)
    with pytest.raises(ValueError, match=f"^{folder} has no checkpoint: it was run with checkpoints.keep='none'$"):
        load_agent(folder)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        load_experiment(tmp_path)
    folder = train(debug(), tmp_path)
    with pytest.raises(ValueError, match="checkpoint is 'best'; choose 'best', 'latest' or a number.*has checkpoint_"):
        load_agent(folder, "best")
    with pytest.raises(ValueError, match="checkpoint is 7; choose"):
        load_agent(folder, 7)
    agent = load_agent(folder)
    assert agent.path == latest_checkpoint(folder / "checkpoints")
    with pytest.raises(ValueError, match="num_episodes is 0"):
        agent.evaluate(0)
    env = agent.make_env(render_mode="rgb_array")
    assert isinstance(env, gym.Env) and env.render_mode == "rgb_array"
    agent._env_spec = object()
    with pytest.raises(ValueError, match="has no single environments; use evaluate"):
        agent.act(np.zeros(4))


@pytest.mark.parametrize("name", ["ppo", "dqn", "actions with bounds"])
def test_a_policy_for_other_programs_does_what_the_agent_does(name, tmp_path):
    agent = load_agent(train(EXPERIMENTS[name](), tmp_path))
    env = agent.make_env()
    observations = [env.reset(seed=seed)[0] for seed in range(5)]
    batch = torch.from_numpy(np.stack(observations))
    expected = np.stack([agent.act(observation) for observation in observations])
    policy = agent.policy()
    exported = torch.export.export(policy, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for act in (policy, exported):
        np.testing.assert_allclose(act(batch).numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(act(batch[:2]).numpy(), expected[:2], rtol=1e-5)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(np.array([-2.0, 0.0, -np.inf]), np.array([2.0, 10.0, np.inf]), dtype=np.float64),
        gym.spaces.Box(0, 255, (2,), np.uint8),
        gym.spaces.Discrete(4, start=2),
        gym.spaces.MultiDiscrete([3, 4], start=[1, 5]),
        gym.spaces.MultiBinary(3),
    ],
)
def test_actions_of_a_policy_are_in_the_units_of_the_environment(space):
    drawn = np.stack([random_actions(space, np.random.default_rng(seed)) for seed in range(6)])
    if isinstance(space, gym.spaces.Box):
        drawn = drawn * 1.5  # beyond the bounds, too
    found = _ToEnv(space)(torch.from_numpy(drawn)).numpy()
    expected = np.stack(to_env_action(space)(drawn))
    assert found.dtype == space.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_agent_with_memory_has_no_policy_for_export(tmp_path):
    with pytest.raises(ValueError, match="has memory"):
        load_agent(train(EXPERIMENTS["memory"](), tmp_path)).policy()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros((2, 4), np.float32), r"the observation has shape \(2, 4\), the space says \(4,\)"),
        (None, "the observation has shape"),
        ((np.zeros(4, np.float32), {}), r"the observation .*; act\(observation\), not what reset"),
    ],
)
def test_observations_that_are_none_are_named(observation, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_agent(train(EXPERIMENTS["ppo"](), tmp_path)).act(observation)


class Blank(CountingEnv):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()

    def render(self) -> Any:
        return "no frame"


@pytest.mark.parametrize(("env", "problem", "complaint"), [
    (GymnasiumEnv(factory=CountingEnv), "CountingEnv takes no render_mode; ", "CountingEnv takes no render_mode; "),
    (GymnasiumEnv(factory=Blank), None, r"Blank.render\(\) returned 'no frame'; "),
])  # fmt: skip
def test_environments_that_do_not_render_are_not_filmed(tmp_path: Any, env: Any, problem: Any, complaint: str) -> None:
    experiment = actor_critic(env)
    found = film_problem(experiment)
    assert found is None if problem is None else str(found).startswith(problem)
    agent = load_agent(train(experiment, tmp_path))
    with pytest.raises(ValueError, match=complaint):
        next(agent.film())
