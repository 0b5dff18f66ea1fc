"""Structures of tensors: PyTorch's side of `namedarraytuple`.

Imported by everything that uses torch on structures; importing it makes every `NamedArrayTuple` class, present and
future, a node of `torch.utils._pytree`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves, on_new_class, tree_map


def _register(cls: type[NamedArrayTuple]) -> None:
    def flatten(tree: NamedArrayTuple) -> tuple[list[Any], tuple[bool, ...]]:
        return [value for value in tree if value is not None], tuple(value is None for value in tree)

    def unflatten(children: Any, empty: tuple[bool, ...]) -> NamedArrayTuple:
        values = iter(children)
        return cls._make(None if is_empty else next(values) for is_empty in empty)

    _pytree.register_pytree_node(cls, flatten, unflatten)


on_new_class(_register)


def to_torch(tree: Tree) -> Tree:
    """Tensors over the memory of numpy arrays (tensors stay)."""
    return tree_map(lambda a: a if isinstance(a, torch.Tensor) else torch.from_numpy(np.asarray(a)), tree)


def to_numpy(tree: Tree) -> Tree:
    """Numpy arrays over the memory of CPU tensors."""
    return tree_map(lambda t: t if isinstance(t, np.ndarray) else t.detach().numpy(), tree)


def to_device(tree: Tree, device: torch.device | str) -> Tree:
    """The tree on ``device``; copies from pinned memory do not wait."""
    return tree_map(lambda t: t.to(device, non_blocking=True), tree)


def upload(tree: Tree, device: torch.device) -> Tree:
    """The tree on ``device``; what it was copied from may be overwritten at once."""
    copied = to_device(tree, device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return copied


def where_first(first: torch.Tensor, null: Tree, tree: Tree) -> Tree:
    """``null`` where ``first`` ``[B]`` is set, ``tree`` elsewhere, leaf by leaf."""
    return tree_map(
        lambda n, t: torch.where(first.reshape(first.shape + (1,) * (t.dim() - first.dim())), n, t), null, tree
    )


def num_bytes(tree: Tree) -> int:
    """Memory of all leaves."""
    return sum(leaf.nbytes for leaf in leaves(tree))


def load_saved(module: torch.nn.Module, saved: Mapping[str, torch.Tensor], network: str, settings: str) -> None:
    """Copy the tensors of a checkpoint into a module.

    Args:
        module: as large as the one that was saved.
        saved: its `state_dict`.
        network, settings: how messages call it, and what it is built from.

    Raises:
        ValueError: they differ; says in which tensor.
    """
    own = module.state_dict()
    faults = [
        f"{name} is {tuple(saved[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in own.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    faults += [f"there is no {name} there" for name in own if name not in saved]
    faults += [f"there is no {name} here" for name in saved if name not in own]
    if faults:
        others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValueError(
            f"the checkpoint's {network} has other shapes: {faults[0]}{others}; resume with the settings of {settings} "
            "that the run was begun with"
        )
    module.load_state_dict(saved)


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers: each module's own once, under its first name, but a tensor of two modules twice.

    These are the names to give `torch.func.functional_call` (with ``tie_weights=False``), which leaves a module that it
    meets under two names with the tensors of the call.
    """
    named: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        named |= {f"{prefix}.{name}" if prefix else name: tensor for name, tensor in own}
    return named
