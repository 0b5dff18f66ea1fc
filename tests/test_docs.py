"""What the documents point at is there, and the encoder that they show is one."""

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.replays import ReplayRatio
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils import config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    local = [link for link in links if not link.startswith(("http:", "https:", "mailto:"))]
    missing = [link for link in local if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_the_text_exist(path):
    named = re.findall(r"`((?:rlsurreal|launchers|examples|tests|docs|benchmarks)/[\w./]+)`", path.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


class Robot(gym.Env[Any, np.ndarray]):
    """Anything will do that has a camera and joints."""

    observation_space = gym.spaces.Dict(
        {"camera": gym.spaces.Box(0, 255, (3, 32, 32), np.uint8), "joints": gym.spaces.Box(-1, 1, (2,), np.float32)}
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), float(action[0]), False, False, {}


def test_the_encoder_that_is_shown_learns(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "adding_a_model.md").read_text()
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class CameraAndJoints" in block
    )
    (tmp_path / "shown_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    shown = importlib.import_module("shown_encoder")
    agent, algo = (config.from_tree(json.loads(json.dumps(config.to_tree(part)))) for part in (shown.agent, shown.algo))
    algo = dataclasses.replace(algo, batch_size=4, limiter=ReplayRatio(ratio=1, min_steps=4))
    sampler = SerialSampler(env=GymnasiumEnv(factory=Robot), batch=BatchSpec(4, 2))
    agent.initialize(sampler.connect(seed=0), seed=0)
    algo.initialize(agent, sampler.batch, seed=0)
    sampler.initialize(agent, discount=algo.discount)
    encoder = agent.module.trunk.encoder
    before = [parameter.clone() for parameter in encoder.parameters()]
    for _ in range(2):
        samples = sampler.obtain()
        metrics = algo.update(samples, progress=0.0)
        sampler.release(samples)
    sampler.close()
    assert metrics["update/updates"] > 0 and encoder.out_features == 52
    assert not any((old == new).all() for old, new in zip(before, encoder.parameters()))
