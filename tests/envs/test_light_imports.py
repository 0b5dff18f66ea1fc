"""Environment worker processes must never import torch, nor the package an engine before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import sys
import numpy as np
from rlsurreal.envs import AleEnv, EnvPoolEnv, GymnasiumEnv, check_env, make_atari
from rlsurreal.structs import EnvStep
from rlsurreal.testing.envs import CountingEnv, NestedEnv
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.spaces import null_value

heavy = {"torch", "ale_py", "envpool", "cv2", "mujoco"} & set(sys.modules)
assert not heavy, f"importing rlsurreal.envs imported {heavy}"
vector = eval(sys.argv[1]).make(2, 0, 0)

def zeros(example):
    return tree_map(lambda leaf: np.zeros((2, *np.shape(leaf)), np.asarray(leaf).dtype), example)

observation = zeros(null_value(vector.spaces.observation))
vector.reset(observation)
flags = [np.zeros(2, bool) for _ in range(4)]
out = EnvStep(observation, np.zeros(2, np.float32), *flags, env_info=zeros(vector.info_example))
for _ in range(3):
    vector.step(zeros(null_value(vector.spaces.action)), out)
if hasattr(vector, "get_state"):
    vector.get_state()
vector.close()
assert out.valid.all()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    "spec",
    [
        "GymnasiumEnv(factory='CartPole-v1')",
        "GymnasiumEnv(factory='HalfCheetah-v5')",
        "GymnasiumEnv(factory=NestedEnv)",
        "GymnasiumEnv(factory=make_atari, kwargs={'game': 'pong'})",
        "AleEnv(game='pong')",
        pytest.param(
            "EnvPoolEnv(task_id='CartPole-v1')",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="EnvPool is for Python 3.11 and newer"),
        ),
    ],
)
def test_torch_is_never_imported(spec: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", STEP, spec], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
