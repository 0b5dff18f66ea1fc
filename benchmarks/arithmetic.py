"""The arithmetic limit of a training task.  python -m benchmarks.arithmetic SETTINGS-AS-JSON

Env steps per second, if nothing but the floating-point operations of networks took time, and all of them went at the
rate of one large matrix product.  They are counted from real steps and updates; the product is timed in turn with
those who train.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks import ours
from benchmarks.peers.gate import Gate
from benchmarks.scaling import count_work
from benchmarks.tasks import Settings
from rlsurreal.runners import Trainer

_SIDE = 1024  # of the square matrices


def count_operations(settings: Settings) -> float:
    """Floating-point operations for each env step: acting, forward and backward passes; a product is two."""
    agent, algo = ours.make_agent(settings), ours.make_algo(settings)
    sampler = ours.make_sampler({**settings, "sampler": "serial"})
    work = count_work(Trainer(agent=agent, algo=algo, sampler=sampler, total_env_steps=1))
    return work.flops / work.env_steps


def main() -> None:
    """Multiply in turns."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate = Gate(torch.__version__)
    steps_per_product = 2 * _SIDE**3 / count_operations(settings)
    left, right, out = torch.randn(3, _SIDE, _SIDE, device=settings["device"])
    num_products = 0
    while True:
        gate.tick(num_products * steps_per_product)
        torch.matmul(left, right, out=out)
        ours.synchronize(settings["device"])
        num_products += 1


if __name__ == "__main__":
    main()
