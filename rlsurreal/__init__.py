"""Deep reinforcement learning on PyTorch: agents, algorithms, samplers, and recipes that put them together."""

__version__ = "0.1.0"
