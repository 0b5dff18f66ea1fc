"""dm_control through shimmy.  It needs an environment of its own: pip install -e .[dm-control], without constraints."""

from importlib import metadata

import numpy as np
import pytest

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.structs import EnvStep
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.spaces import null_value


def _why_not() -> str | None:
    try:
        metadata.version("dm_control"), metadata.version("shimmy")
    except metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed; it does not go with MuJoCo 4"
    if int(metadata.version("mujoco").split(".")[0]) >= 4:
        return "dm_control does not load with MuJoCo 4"
    return None


@pytest.mark.skipif(_why_not() is not None, reason=_why_not() or "")
def test_episodes_end_by_truncation_with_nested_observations():
    env = GymnasiumEnv(factory="dm_control/cartpole-balance-v0").make(2, 0, 0)
    observation = tree_map(lambda leaf: np.stack([leaf] * 2), null_value(env.spaces.observation))
    env.reset(observation)
    flags = [np.zeros(2, bool) for _ in range(4)]
    row = EnvStep(observation, np.zeros(2, np.float32), *flags, None)
    ends = []
    for t in range(1002):
        env.step(np.zeros((2, 1), np.float32), row)
        if row.truncated.any():
            ends.append(t)
        assert not row.terminated.any()
    assert ends == [999] and observation.position.dtype == np.float32
    env.close()
