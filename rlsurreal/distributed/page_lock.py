"""Page-locks shared arrays, so that a GPU copies to and from them directly.  Called by samplers, where there is a GPU.

A copy from ordinary memory goes through a buffer of the driver's and makes the host wait; it reaches a fraction of the
bus's speed.
"""

from __future__ import annotations

import logging
import weakref

import torch

from rlsurreal.distributed.shared_arrays import SharedArray
from rlsurreal.utils.namedarraytuple import Tree, leaves

_locked: set[int] = set()  # first addresses of blocks that are locked in this process
_log = logging.getLogger("rlsurreal")


def page_lock(tree: Tree, device: torch.device) -> None:
    """Lock the blocks in which the arrays of ``tree`` lie, until they are gone; nothing if ``device`` is no GPU.

    Each process that uses a GPU calls this for itself.  Arrays that are not shared stay as they are.
    """
    if device.type != "cuda":
        return
    blocks = {leaf.block.base: leaf.block for leaf in leaves(tree) if isinstance(leaf, SharedArray) and leaf.block}
    for base, block in blocks.items():
        if base in _locked:
            continue
        with torch.cuda.device(device):
            error = int(torch.cuda.cudart().cudaHostRegister(base, block.size, 0))
        if error:
            _log.warning("%d bytes of samples could not be page-locked (CUDA error %d)", block.size, error)
            continue
        _locked.add(base)
        weakref.finalize(block, _unlock, base).atexit = False


def _unlock(base: int) -> None:
    _locked.discard(base)
    torch.cuda.cudart().cudaHostUnregister(base)
