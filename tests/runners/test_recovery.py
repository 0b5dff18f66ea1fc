"""What survives: a resumed run begins with what was learned, in new episodes; a failed one leaves what it learned."""

import csv
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import A2C, PPO
from rlsurreal.distributed.processes import ChildError
from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv
from rlsurreal.envs.base import EnvError
from rlsurreal.models import ActorCritic
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import AsyncSampler, EvalSpec, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import AgentInputs, BatchSpec
from rlsurreal.testing.envs import FailingEnv
from rlsurreal.utils.files import RUN_LOCK, alone_in, list_checkpoints, load_checkpoint, save_checkpoint
from rlsurreal.utils.namedarraytuple import tree_map

BATCH = BatchSpec(16, 4)
HEALTHY = GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 10**9})
FAILING = GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 40})  # in the third slot
ENVPOOL = EnvPoolEnv(task_id="CartPole-v1")
processes = pytest.mark.processes


def trainer(root: Path, sampler: Any, **changes: Any) -> Trainer:
    settings: dict[str, Any] = dict(
        agent=ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (8,)})),
        algo=PPO(num_epochs=1, num_minibatches=1, learning_rate=0.05),
        sampler=sampler,
        total_env_steps=400,
        root=str(root),
        console="off",
        tensorboard=False,
    )
    return Trainer(**{**settings, **changes})


def parameters(agent: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in agent.module.state_dict().values()]


class Spy:
    """Stands between a trainer and its algorithm, and keeps what every update was given."""

    def __init__(self, run: Trainer) -> None:
        self.slots: list[Any] = []
        self.versions: list[int] = []  # of the learner, before each update
        self.values: list[torch.Tensor] = []  # what the learner's model says about row 0, before each update
        self.before: list[list[torch.Tensor]] = []
        self.after: list[list[torch.Tensor]] = []
        update = run.algo.update

        def watched(samples: Any, progress: float) -> Any:
            self.slots.append(tree_map(torch.clone, samples))
            self.versions.append(run.agent.version)
            self.before.append(parameters(run.agent))
            with torch.no_grad():
                self.values.append(run.agent.value(AgentInputs(samples.env.observation[0]), None))
            metrics = update(samples, progress)
            self.after.append(parameters(run.agent))
            return metrics

        run.algo.update = watched  # type: ignore[method-assign]


def observations(spy: Spy) -> np.ndarray:
    return np.concatenate([slot.env.observation[:-1].numpy().reshape(-1, 4) for slot in spy.slots])


def share_no_episode(*runs: np.ndarray) -> bool:
    """CartPole begins with random numbers, so that no observation of other episodes is the same."""
    seen = [set(map(bytes, np.ascontiguousarray(run))) for run in runs]
    return all(not one & other for i, one in enumerate(seen) for other in seen[:i])


SAMPLERS = {
    "native-engine": lambda: SerialSampler(env=ENVPOOL, batch=BATCH),
    "asynchronous": lambda: AsyncSampler(env=ENVPOOL, batch=BATCH, num_ready=2),
    "two-slots": lambda: ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"), batch=BATCH, num_workers=1, num_slots=2
    ),
    "served": lambda: ParallelSampler(
        env=GymnasiumEnv(factory="CartPole-v1"), batch=BATCH, num_workers=2, inference=InferenceServer()
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=processes if kind in ("two-slots", "served") else ()) for kind in SAMPLERS]
)
def test_a_resumed_run_begins_with_what_was_learned_and_with_other_episodes(tmp_path, kind):
    spies, folder = [], None
    for total in (300, 600, 900):  # the third run resumes a run that was resumed
        run = trainer(tmp_path, SAMPLERS[kind](), total_env_steps=total)
        spies.append(Spy(run))
        folder = run.train(resume=folder)
    assert share_no_episode(*map(observations, spies))
    for previous, resumed in zip(spies, spies[1:]):
        assert resumed.versions[0] == previous.versions[-1] + 1
        for learned, restored in zip(previous.after[-1], resumed.before[0], strict=True):
            torch.testing.assert_close(learned, restored, rtol=0, atol=0)
        first = resumed.slots[0]
        if kind != "asynchronous":  # there the first rows run ahead, into the second slot too
            assert first.policy_version[:-1].unique().tolist() == [resumed.versions[0]]
        assert first.policy_version[0].unique().tolist() == [resumed.versions[0]]
        torch.testing.assert_close(first.agent.agent_info.value[0], resumed.values[0])
        assert first.env.first[0].all()


@pytest.mark.parametrize("kind", ["serial", pytest.param("parallel", marks=processes)])
def test_a_failure_leaves_what_was_learned_and_a_run_that_goes_on(tmp_path, kind):
    def sampler(env: GymnasiumEnv) -> Any:
        if kind == "serial":
            return SerialSampler(env=env, batch=BATCH)
        return ParallelSampler(env=env, batch=BATCH, num_workers=2, inference=InferenceServer())

    failed = trainer(tmp_path, sampler(FAILING))
    spy = Spy(failed)
    with pytest.raises(EnvError if kind == "serial" else ChildError, match="FailingEnv fails in step"):
        failed.train()
    folder = tmp_path / "run_0"
    ((steps, path),) = list_checkpoints(folder / "checkpoints")
    counter = load_checkpoint(path)["counter"]
    valid = sum(int(slot.env.valid[:-1].sum()) for slot in spy.slots)
    assert len(spy.slots) == 2 and (counter["iterations"], counter["env_steps"], steps) == (2, valid, valid)

    resumed = trainer(tmp_path, sampler(HEALTHY), log_interval_steps=50)
    later = Spy(resumed)
    assert resumed.train(resume=folder) == folder
    for learned, restored in zip(spy.after[-1], later.before[0], strict=True):
        torch.testing.assert_close(learned, restored, rtol=0, atol=0)
    # Its environments were left in the middle of things: these are new ones, with other names.
    assert later.slots[0].env.first[0].all()
    assert not set(later.slots[0].env.observation[0, :, 0].tolist()) & set(
        spy.slots[0].env.observation[0, :, 0].tolist()
    )
    end = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])["counter"]
    added = sum(int(slot.env.valid[:-1].sum()) for slot in later.slots)
    assert end["iterations"] == 2 + len(later.slots) and end["env_steps"] == valid + added >= 400
    with open(folder / "progress.csv", newline="") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file)]
    assert logged == sorted(set(logged)) and logged[-1] == end["env_steps"]


def test_an_interval_that_was_saved_already_is_not_saved_again(tmp_path):
    policy = CheckpointPolicy(keep="all", interval_steps=1)
    with pytest.raises(EnvError, match="FailingEnv fails in step"):
        trainer(tmp_path, SerialSampler(env=FAILING, batch=BATCH), checkpoints=policy).train()
    checkpoints = list_checkpoints(tmp_path / "run_0" / "checkpoints")
    assert len(checkpoints) == 2
    saved = load_checkpoint(checkpoints[-1][1])["ranks"][0]["sampler"]
    assert saved.keys() > {"generation"}, "the whole one must stay"


@pytest.mark.parametrize("policy", [CheckpointPolicy(keep="none"), CheckpointPolicy()])
def test_nothing_is_saved_where_nothing_was_learned_or_wanted(tmp_path, policy):
    at = 3 if policy.keep != "none" else 40
    env = GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": at})
    with pytest.raises(EnvError):
        trainer(tmp_path, SerialSampler(env=env, batch=BATCH), checkpoints=policy).train()
    assert not list((tmp_path / "run_0").rglob("*.pt"))


def test_a_second_interrupt_in_sampling_leaves_what_was_learned(tmp_path):
    run = trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH))
    obtain, calls = run.sampler.obtain, []

    def interrupted() -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return obtain()

    run.sampler.obtain = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    ((_, path),) = list_checkpoints(tmp_path / "run_0" / "checkpoints")
    assert load_checkpoint(path)["counter"]["iterations"] == 2


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_parameters_that_are_not_finite_are_not_saved(tmp_path, env):
    run = trainer(tmp_path, SerialSampler(env=GymnasiumEnv(factory=env), batch=BATCH), algo=A2C(learning_rate=1e38))
    with pytest.raises((FloatingPointError, EnvError)):
        run.train()
    assert not list((tmp_path / "run_0").rglob("*.pt"))


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_before(tmp_path):
    policy = CheckpointPolicy(interval_steps=1, keep="all")
    run = trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH), checkpoints=policy)
    update, calls = run.algo.update, []

    def spoilt(samples: Any, progress: float) -> Any:
        calls.append(1)
        metrics = update(samples, progress)
        return {**metrics, "loss/policy": float("nan")} if len(calls) == 3 else metrics

    run.algo.update = spoilt  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="loss/policy not finite in update 3"):
        run.train()
    checkpoints = list_checkpoints(tmp_path / "run_0" / "checkpoints")
    assert [load_checkpoint(path)["counter"]["iterations"] for _, path in checkpoints] == [1, 2]


def test_parameters_that_are_not_finite_are_not_saved_over_the_checkpoint_before(tmp_path):
    policy = CheckpointPolicy(interval_steps=1)
    run = trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH), checkpoints=policy)
    update, calls = run.algo.update, []

    def spoilt(samples: Any, progress: float) -> Any:
        calls.append(1)
        metrics = update(samples, progress)  # which says nothing of it: off-policy algorithms give theirs now and then
        if len(calls) == 3:
            next(run.agent.module.parameters()).data.view(-1)[0] = float("nan")
        return metrics

    run.algo.update = spoilt  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="parameters are not finite .* checkpoint before is kept"):
        run.train()
    ((_, path),) = list_checkpoints(tmp_path / "run_0" / "checkpoints")
    assert load_checkpoint(path)["counter"]["iterations"] == 2


def test_a_failed_evaluation_leaves_what_was_learned(tmp_path):
    evaluation = EvalSpec(env=FAILING, num_envs=1, episodes_per_env=10)
    run = trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH, evaluation=evaluation), eval_interval_steps=100)
    with pytest.raises(EnvError, match="FailingEnv fails in step"):
        run.train()
    ((_, path),) = list_checkpoints(tmp_path / "run_0" / "checkpoints")
    assert load_checkpoint(path)["counter"]["iterations"] == 2


def test_an_evaluation_that_failed_at_the_very_end_is_made_up_for(tmp_path):
    def run(env: GymnasiumEnv) -> Trainer:
        evaluation = EvalSpec(env=env, num_envs=1, episodes_per_env=10)
        sampler = SerialSampler(env=HEALTHY, batch=BATCH, evaluation=evaluation)
        return trainer(tmp_path, sampler, eval_interval_steps=400)

    with pytest.raises(EnvError, match="FailingEnv fails in step"):
        run(FAILING).train()
    folder = tmp_path / "run_0"
    assert not (folder / "checkpoints" / "best.pt").exists()
    for _ in range(2):  # the second time everything is there
        run(HEALTHY).train(resume=folder)
        (_, path) = list_checkpoints(folder / "checkpoints")[-1]
        state = load_checkpoint(path)
        assert state["evaluations"]["evaluated_at"] == state["counter"]["env_steps"] >= 400
    best = load_checkpoint(folder / "checkpoints" / "best.pt")["best"]
    with open(folder / "progress.csv", newline="") as file:
        *_, last = csv.DictReader(file)
    assert best == state["best"] == float(last["eval/return/mean"]) and int(last["step"]) >= 400


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    folder = trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH)).train()
    config = (folder / "config.json").read_text()
    wider = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (9,)}))
    with pytest.raises(ValueError, match="other shapes: .* resume with the settings of agent.model"):
        trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH), agent=wider).train(resume=folder)
    assert (folder / "config.json").read_text() == config and not list(folder.glob("config_*.json"))


def test_the_best_of_a_run_that_was_killed_is_not_forgotten(tmp_path):
    evaluation = EvalSpec(env=HEALTHY, num_envs=1, episodes_per_env=1)

    def run(total: int) -> Trainer:
        sampler = SerialSampler(env=HEALTHY, batch=BATCH, evaluation=evaluation)
        return trainer(tmp_path, sampler, eval_interval_steps=100, total_env_steps=total)

    folder = run(200).train()
    best = folder / "checkpoints" / "best.pt"
    state = load_checkpoint(best)
    save_checkpoint(best, {**state, "best": 1e6})  # one that came after the checkpoint
    run(400).train(resume=folder)
    assert load_checkpoint(best)["best"] == 1e6


@pytest.mark.parametrize("when", ["before", "during"])
def test_what_is_learned_is_saved_although_a_signal_comes_with_an_evaluation(tmp_path, when):
    """The evaluation is left to the run that goes on."""
    events: list[str] = []

    class Evaluated(SerialSampler):
        def evaluate(self, give_up: Any = None) -> Any:
            events.append(f"{len(list_checkpoints(tmp_path / 'run_0' / 'checkpoints'))} saved")
            if when == "during" and len(events) == 5:
                signal.raise_signal(signal.SIGTERM)
            found = super().evaluate(give_up)
            events.append("left out" if found is None else "evaluation")
            return found

    class Signalled(PPO):
        def update(self, samples: Any, progress: float) -> Any:
            if when == "before" and len(events) == 3:
                signal.raise_signal(signal.SIGTERM)
            events.append("update")
            return super().update(samples, progress)

    def make() -> Trainer:
        return trainer(
            tmp_path,
            Evaluated(env=HEALTHY, batch=BATCH, evaluation=EvalSpec(env=HEALTHY, num_envs=1, episodes_per_env=1)),
            algo=Signalled(num_epochs=1, num_minibatches=1),
            eval_interval_steps=1,  # in each iteration
            total_env_steps=3 * BATCH.size,
        )

    run = make()
    folder = run.train()
    assert run.interrupted_by == "SIGTERM"
    first = ["update", "0 saved", "evaluation", "update"]
    assert events == [*first, *(["0 saved", "left out"] if when == "during" else [])]
    ((steps, path),) = list_checkpoints(folder / "checkpoints")
    assert load_checkpoint(path)["evaluations"]["evaluated_at"] == steps // 2
    assert f"stopped by SIGTERM after {steps} of " in (folder / "log.txt").read_text()
    events[:] = ["of another run"] * 10
    make().train(resume=folder)
    assert events[10:12] == ["1 saved", "evaluation"]
    assert events[-1] == "evaluation"


def test_a_checkpoint_that_is_still_written_is_waited_for_with_an_error(tmp_path, monkeypatch):
    """Nothing of a run is read before it is this process's own."""
    folder = trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH)).train()
    monkeypatch.setattr("rlsurreal.runners.run.load_latest", lambda folder: pytest.fail("read without the lock"))
    with alone_in(folder, RUN_LOCK, "run"), pytest.raises(ValueError, match="another run .* works on"):
        trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH)).train(resume=folder)


def test_resuming_where_there_is_nothing_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere has no checkpoint to resume from"):
        trainer(tmp_path, SerialSampler(env=HEALTHY, batch=BATCH)).train(resume=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
