"""Evaluations: each begins afresh, disturbs nothing, and counts equally many whole games of each environment."""

import copy
import sys
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import pytest

from rlsurreal.envs import EnvPoolEnv, GymnasiumEnv
from rlsurreal.samplers import EvalSpec, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec, Samples, TrajInfo
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import CountingEnv
from rlsurreal.utils.namedarraytuple import named_leaves, tree_map

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # child processes cannot import this file

NUM_STEPS = 12
CARRIED = ("env.observation", "env.first", "env.prev_reward", "agent.prev_action", "agent.agent_state")
SERVED = dict(num_workers=2, inference=InferenceServer())
here_and_served = pytest.mark.parametrize(
    "parallel", [None, pytest.param(SERVED, marks=pytest.mark.processes)], ids=["serial", "served"]
)


@dataclass(kw_only=True, eq=False)
class Listening(TapeAgent):
    """Notes the inputs, the memory and the random numbers of every call in this process."""

    def act(self, inputs: Any, state: Any, noise: Any) -> Any:
        self.heard = [*getattr(self, "heard", []), copy.deepcopy((inputs, state, noise))]
        return super().act(inputs, state, noise)


def make(env: Any, evaluation: EvalSpec, parallel: dict[str, Any] | None = None, agent: Any = None) -> Any:
    settings: dict[str, Any] = dict(env=env, batch=BatchSpec(NUM_STEPS, 4), state_interval=4, evaluation=evaluation)
    sampler = SerialSampler(**settings) if parallel is None else ParallelSampler(**settings, **parallel)
    agent = agent or TapeAgent()
    try:
        agent.initialize(sampler.connect(seed=3), seed=1)
        sampler.initialize(agent, discount=0.9)
    except BaseException:
        sampler.close()
        raise
    return sampler


def evaluate(env: Any, spec: EvalSpec, parallel: dict[str, Any] | None) -> list[TrajInfo]:
    sampler = make(env, spec, parallel)
    try:
        return sampler.evaluate()
    finally:
        sampler.close()


@here_and_served
def test_every_evaluation_begins_with_null_inputs_and_memory(parallel):
    agent = Listening()
    spec = EvalSpec(num_envs=3, episodes_per_env=1, num_steps=7)  # games of ten steps end in the middle of a slot
    sampler = make(GymnasiumEnv(factory=CountingEnv), spec, parallel, agent)
    try:
        for _ in range(3):
            sampler.release(sampler.obtain())
            agent.heard = []
            sampler.evaluate()
            heard = [call for call in agent.heard if len(call[0].prev_reward) == 3]
            (inputs, state, _), (later, later_state, _) = heard[0], heard[1]
            assert inputs.observation[:, 2].tolist() == [0, 0, 0]
            assert inputs.prev_reward.tolist() == [0, 0, 0] and inputs.prev_action.tolist() == [0, 0, 0]
            assert state.steps.tolist() == [0, 0, 0] and state.score.tolist() == [1, 2, 3], "each environment's own"
            assert later.prev_reward.tolist() == [1, 1, 1] and later_state.steps.tolist() == [1, 1, 1]
            assert heard[-1][0].prev_reward.any(), "what the next evaluation must not begin with"
    finally:
        sampler.close()


@pytest.mark.parametrize("deterministic", [True, False])
@here_and_served
def test_random_numbers_are_those_of_evaluation(parallel, deterministic):
    agent = Listening()
    spec = EvalSpec(num_envs=3, episodes_per_env=1, num_steps=7, deterministic=deterministic)
    sampler = make(GymnasiumEnv(factory=CountingEnv), spec, parallel, agent)
    try:
        agent.heard = []
        sampler.evaluate()
    finally:
        sampler.close()
    given = [noise for inputs, _, noise in agent.heard if len(inputs.prev_reward) == 3]
    kinds = ("evaluation", "uniform") if deterministic else ("uniform", "evaluation")
    assert all(getattr(noise, kinds[1]) is None for noise in given)
    numbers = np.concatenate([getattr(noise, kinds[0]).numpy() for noise in given])
    assert len(np.unique(numbers)) == numbers.size >= 30, "each environment's and each step's own"


def _slots(parallel: dict[str, Any] | None, evaluations_after: tuple[int, ...]) -> list[Samples]:
    spec = EvalSpec(num_envs=3, episodes_per_env=1, num_steps=7, deterministic=False)
    sampler = make(GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": (5, 8, 13)}), spec, parallel)
    slots = []
    try:
        for i in range(5):
            samples = sampler.obtain()
            slots.append(tree_map(lambda leaf: leaf.numpy().copy(), samples))
            sampler.release(samples)
            for _ in range(evaluations_after.count(i)):
                assert len(sampler.evaluate()) == 3
        return slots
    finally:
        sampler.close()


@pytest.mark.parametrize(
    "parallel",
    [
        None,
        pytest.param(SERVED, marks=pytest.mark.processes),
        pytest.param(dict(num_workers=2), marks=pytest.mark.processes),
        pytest.param(dict(num_workers=1, num_slots=2), marks=pytest.mark.processes),
        pytest.param({**SERVED, "num_slots": 2}, marks=pytest.mark.processes),
    ],
    ids=["serial", "served", "worker", "worker-two-slots", "served-two-slots"],
)
def test_evaluations_leave_sampling_as_it_was(parallel):
    undisturbed = _slots(None, ())
    for i, (one, other) in enumerate(zip(undisturbed, _slots(parallel, (0, 2, 2)), strict=True)):
        for (name, x), (_, y) in zip(named_leaves(one), named_leaves(other), strict=True):
            rows = len(x) if name.startswith(CARRIED) else NUM_STEPS
            np.testing.assert_array_equal(x[:rows], y[:rows], err_msg=f"slot {i}, {name}")


@here_and_served
def test_each_environment_plays_its_first_games_however_long_they_are(parallel):
    # After one long game each environment has many short ones: stopping at a number of games would prefer those.
    lengths = (61, 2, 3, 2, 2)
    spec = EvalSpec(num_envs=5, episodes_per_env=2, num_steps=16)
    played = evaluate(GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": lengths}), spec, parallel)
    assert sorted((game.env, game.length, game.total_reward) for game in played) == [
        (env, length, length * (length + 1) / 2) for env in range(5) for length in (2, 61)
    ]


class UnevenEnv(CountingEnv):
    """All games are short or all are long, as the seed wills."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.lengths = (2 if seed % 2 else 70,)
        return super().reset(seed=seed, options=options)


@here_and_served
def test_environments_with_short_games_do_not_play_more_of_them(parallel):
    spec = EvalSpec(num_envs=8, episodes_per_env=3, num_steps=16)
    played = evaluate(GymnasiumEnv(factory=UnevenEnv), spec, parallel)
    lengths = [{game.length for game in played if game.env == env} for env in range(8)]
    assert {2} in lengths and {70} in lengths and all(len(of_one) == 1 for of_one in lengths)
    assert [sum(game.env == env for game in played) for env in range(8)] == [3] * 8


def test_engines_that_step_all_together_play_equally_many_games_too():
    spec = EvalSpec(num_envs=4, episodes_per_env=5, num_steps=16)
    played = evaluate(EnvPoolEnv(task_id="CartPole-v1"), spec, None)
    assert [sum(game.env == env for game in played) for env in range(4)] == [5] * 4


@here_and_served
def test_games_that_are_too_long_are_given_up_and_counted(parallel, caplog):
    spec = EvalSpec(num_envs=3, episodes_per_env=2, num_steps=20, max_episode_steps=50)
    env = GymnasiumEnv(factory=CountingEnv, kwargs={"lengths": (7, 10**9)})
    played = evaluate(env, spec, parallel)
    assert [game.length for game in played[:3]] == [7, 7, 7]
    assert len(played) == 6 and all(50 < game.length <= 70 for game in played[3:])
    assert "gave up 3 evaluation games after 50 steps" in caplog.text
