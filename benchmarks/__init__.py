"""Benchmarks: how fast, and how well, against the machine's limit and against peers, side by side in one run."""
