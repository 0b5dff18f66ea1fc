"""Frames kept once against whole observations, on real games: lost lives, ends, time limits, and the replay's wrap.

After a lost life ALE's next row is a step; EnvPool's is a reset row, whose stack goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.envs import AleEnv, EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.replays import FrameStorage, FullStorage, NStep, Replay
from rlsurreal.replays.extractors import Items
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.utils.namedarraytuple import named_leaves

BATCH = BatchSpec(num_steps=20, num_envs=2)


def ale(**settings: Any) -> Any:
    return GymnasiumEnv(factory=make_atari, kwargs=settings)


def envpool(game: str, max_frames: int, episodic_life: bool) -> Any:
    pytest.importorskip("envpool", reason="EnvPool needs Python 3.11")
    kwargs = {"max_episode_steps": max_frames // 4, "episodic_life": episodic_life, "img_height": 84, "img_width": 84}
    return EnvPoolEnv(task_id=f"{game.capitalize()}-v5", kwargs=kwargs)


@pytest.mark.parametrize("episodic_life", [True, False], ids=["lives", "games"])
@pytest.mark.parametrize(
    ("engine", "padding"), [(ale, "zeros"), (AleEnv, "zeros"), (envpool, "first")], ids=["ale", "native", "envpool"]
)
def test_frames_are_the_observations(engine: Any, padding: Any, episodic_life: bool) -> None:
    sampler = SerialSampler(env=engine(game="breakout", max_frames=300, episodic_life=episodic_life), batch=BATCH)
    agent = TapeAgent(memory=False)
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    replays = [
        Replay(capacity=250, storage=storage, extractor=NStep(num_steps=3))
        for storage in (FrameStorage(padding=padding), FullStorage())
    ]
    for replay in replays:
        replay.initialize(BATCH, seed=5, discount=0.9, device=torch.device("cpu"))
    rng = np.random.default_rng(0)
    ends = lives = 0
    for _ in range(20):
        samples = sampler.obtain()
        env = samples.env[: BATCH.num_steps]
        ends += int((~env.valid).sum())
        lives += int((env.first[1:] & env.valid[1:] & env.valid[:-1]).sum())
        for replay in replays:
            replay.append(samples)
        sampler.release(samples)
        # Frames at the wrap's edge that only older rows have are offered by one of the two alone.
        places = np.intersect1d(*(replay.starts.suitable_places() for replay in replays))
        starts, envs = replays[0].starts.at(rng.choice(places, 64))
        items = Items(starts, envs, np.ones(64, np.float32), None)
        frames, full = (replay.extractor.extract(replay._past, items, rng) for replay in replays)
        for (name, one), (_, other) in zip(named_leaves(frames), named_leaves(full), strict=True):
            np.testing.assert_array_equal(one, other, name)
    sampler.close()
    assert ends > 4 and (lives > 4) == (episodic_life and engine is not envpool), "what is difficult has happened"
