"""Packaging.  The versions that were tested together are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

version = re.findall(
    r'__version__ = "(.+)"', Path(__file__).with_name("rlsurreal").joinpath("__init__.py").read_text()
)[0]

atari = ["ale-py>=0.11", "opencv-python-headless"]
envpool = ["envpool>=1.2"]  # for Python 3.11 and newer
dm_control = ["shimmy[dm-control]>=2.0", "mujoco<4"]  # dm_control 1.0.50 does not load with MuJoCo 4
minatar = ["minatar>=1.0.15"]
robotics = ["gymnasium-robotics>=1.4", "mujoco<3.4"]  # 1.4.2 does not load with MuJoCo 3.17 or newer; tested with 3.3.7
plot = ["matplotlib"]
kubernetes = ["kubernetes-validate"]  # checks what launchers/submit.py would submit
skypilot = ["skypilot"]  # its own demands are narrow: better in an environment of its own, with `sky` on the PATH
video = ["imageio[ffmpeg]"]
test = ["pytest", "pytest-timeout", "pytest-xdist", "ruff", "mypy", "psutil", "types-psutil"]

setup(
    name="rlsurreal",
    version=version,
    description="Deep reinforcement learning at the speed of the machine: PyTorch, shared memory, one to many learners",
    packages=find_packages(include=["rlsurreal", "rlsurreal.*"]),
    package_data={"rlsurreal": ["py.typed", "replays/*.c"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.8",
        "numpy>=1.26,<3",
        "gymnasium[mujoco]>=1.1",
        "mujoco>=3.1",
        "psutil",
        "pyprind",
        "tensorboard",
        "cloudpickle",
        "typing-extensions>=4.1",
    ],
    extras_require={
        "atari": atari,
        "envpool": envpool,
        "dm-control": dm_control,
        "minatar": minatar,
        "robotics": robotics,
        "plot": plot,
        "kubernetes": kubernetes,
        "skypilot": skypilot,
        "video": video,
        "dev": atari
        + [f"{name}; python_version >= '3.11'" for name in envpool]
        + minatar
        + plot
        + video
        + kubernetes
        + test,
    },
)
