"""Deep reinforcement learning on PyTorch: agents, algorithms, samplers, and recipes that put them together."""
