"""Episodes that end in the middle of a slot, where resets wait for its end, or do not: every row written out."""

from __future__ import annotations

from functools import partial

import pytest

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.samplers import InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import CountingEnv

#       game, step, reward, terminated, valid, first, steps remembered
WAITING = [
    [
        (0, 0, 1, False, True, True, 0),
        (0, 1, 2, False, True, False, 1),
        (0, 2, 3, True, True, False, 2),
        (0, 3, 0, False, False, False, 3),  # the last observation stays
        (0, 3, 0, False, False, False, 4),
    ],
    [
        (0, 3, 0, False, False, False, 5),  # the reset row: the environment is reset, and the action not used
        (1, 0, 1, False, True, True, 0),
        (1, 1, 2, False, True, False, 1),
        (1, 2, 3, False, True, False, 2),
        (1, 3, 4, True, True, False, 3),
    ],
    [
        (1, 4, 0, False, False, False, 4),
        (2, 0, 1, False, True, True, 0),
        (2, 1, 2, False, True, False, 1),
        (2, 2, 3, True, True, False, 2),
        (2, 3, 0, False, False, False, 3),
    ],
]


# Three lives of two steps each: an episode begins with each life, a game (and a wait) ends with the last one only.
LIVES_BEGIN = [
    (0, 0, 1, False, True, True, 0),
    (0, 1, 2, True, True, False, 1),
    (0, 2, 3, False, True, True, 0),
    (0, 3, 4, True, True, False, 1),
    (0, 4, 5, False, True, True, 0),
]
LIVES_WAITING = [
    LIVES_BEGIN,
    [(0, 5, 6, True, True, False, 1), *((0, 6, 0, False, False, False, steps) for steps in (2, 3, 4, 5))],
    [
        (0, 6, 0, False, False, False, 6),
        (1, 0, 1, False, True, True, 0),
        (1, 1, 2, True, True, False, 1),
        (1, 2, 3, False, True, True, 0),
        (1, 3, 4, True, True, False, 1),
    ],
]
LIVES_AT_ONCE = [
    LIVES_BEGIN,
    [
        (0, 5, 6, True, True, False, 1),
        (0, 6, 0, False, False, False, 2),
        (1, 0, 1, False, True, True, 0),
        (1, 1, 2, True, True, False, 1),
        (1, 2, 3, False, True, True, 0),
    ],
]
GAMES = {
    "waiting": ({"lengths": (3, 4)}, False, WAITING),
    "lives-waiting": ({"lengths": 6, "lives": 3}, False, LIVES_WAITING),
    "lives-at-once": ({"lengths": 6, "lives": 3}, True, LIVES_AT_ONCE),
}
KINDS = {
    "serial": SerialSampler,
    "workers": partial(ParallelSampler, num_workers=1),
    "served-dynamically": partial(ParallelSampler, num_workers=1, inference=InferenceServer(schedule="dynamic")),
}


@pytest.mark.parametrize("games", GAMES)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "serial" else pytest.mark.processes) for kind in KINDS]
)
def test_rows(kind, games):
    kwargs, mid_batch_reset, slots = GAMES[games]
    sampler = KINDS[kind](
        env=GymnasiumEnv(factory=CountingEnv, kwargs=kwargs),
        batch=BatchSpec(num_steps=5, num_envs=1),
        mid_batch_reset=mid_batch_reset,
    )
    agent = TapeAgent()
    try:
        agent.initialize(sampler.connect(seed=0), seed=0)
        sampler.initialize(agent, discount=0.9)
        for i, rows in enumerate(slots):
            samples = sampler.obtain()
            env, info = samples.env, samples.agent.agent_info
            for t, (game, step, reward, terminated, valid, first, steps) in enumerate(rows):
                where = f"slot {i}, row {t}"
                assert env.observation[t, 0, 1:3].tolist() == [game, step], where
                assert env.reward[t, 0] == reward and env.terminated[t, 0] == terminated, where
                assert env.valid[t, 0] == valid and env.first[t, 0] == first, where
                assert not env.truncated[t, 0] and info.steps[t, 0] == steps, where
                if first:
                    assert env.prev_reward[t, 0] == 0 and samples.agent.prev_action[t, 0] == 0, where
                elif t > 0:
                    assert env.prev_reward[t, 0] == rows[t - 1][2], where
                    assert samples.agent.prev_action[t, 0] == samples.agent.action[t - 1, 0], where
            sampler.release(samples)
    finally:
        sampler.close()
