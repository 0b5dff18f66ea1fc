"""Whether a model is what those who run it ask for: its members, its layers, and what it makes of zeros.

Called by agents and algorithms when they have built one, on the CPU, before anything is collected.  ``role`` says in
messages what it was built for: "a model of QAgent".  Gradients, random streams and statistics take no notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin

from rlsurreal.distributions import Distribution
from rlsurreal.structs import AgentInputs, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves, tree_map
from rlsurreal.utils.spaces import null_value
from rlsurreal.utils.torch_tree import to_torch

_ROWS, _STEPS, _TAUS = 2, 3, 4
_SEE = "see docs/adding_a_model.md"

Leading = tuple[int, ...]  # dimensions


@contextmanager
def _aside() -> Iterator[None]:
    with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=()):
        yield


# ---------------------------------------------------------------- one function for each kind of model


@_aside()
def check_actor_critic(module: Any, role: str, spaces: Spaces, distribution: Distribution) -> None:
    """ValueError unless it is as `rlsurreal.models.actor_critic` says."""
    trial = _Trial(module, role, "recurrent", "initial_state", "value")
    trial.step(
        spaces,
        "(params, value)",
        lambda leading: (_params_shapes(distribution, leading), leading),
        "what distribution.params gives, and one number for each row",
    )
    value = trial.run("value", _inputs(spaces, module.recurrent, (_ROWS,)), trial.initial_state())
    trial.check("value", "values", value, (_ROWS,), "one for each row")


@_aside()
def check_q_network(module: Any, role: str, spaces: Spaces, num_actions: int) -> None:
    """ValueError unless it is as `rlsurreal.models.q_network` says."""
    trial = _Trial(module, role, "recurrent", "num_noise", "num_atoms", "num_cosines", "initial_state")
    last: Leading = ()
    means = "one for each action"
    if module.num_cosines is not None:
        last, means = (_TAUS,), "one for each action and tau"
    elif module.num_atoms is not None:
        last, means = (module.num_atoms,), "one for each action and atom"

    def chance(leading: Leading) -> dict[str, Any]:
        return {
            "noise": torch.zeros(*leading, module.num_noise) if module.num_noise else None,
            "taus": torch.zeros(*leading, _TAUS) if module.num_cosines is not None else None,
        }

    trial.step(spaces, "values", lambda leading: (*leading, num_actions, *last), means, chance)


@_aside()
def check_deterministic_policy(module: Any, role: str, spaces: Spaces) -> None:
    """ValueError unless it is as `rlsurreal.models.policies` says of deterministic ones."""
    trial = _Trial(module, role, "recurrent", "initial_state")
    shape = spaces.action.shape or ()
    trial.step(spaces, "actions", lambda leading: (*leading, *shape), "one for each row")


@_aside()
def check_stochastic_policy(module: Any, role: str, spaces: Spaces) -> None:
    """ValueError unless it is as `rlsurreal.models.policies` says of stochastic ones."""
    trial = _Trial(module, role, "recurrent", "initial_state", "distribution")
    distribution = module.distribution
    if not isinstance(distribution, Distribution):
        raise trial.error("distribution", f"is {distribution!r}", "has one of rlsurreal.distributions")
    wanted = "what distribution.params gives"
    trial.step(spaces, "params", lambda leading: _params_shapes(distribution, leading), wanted)


@_aside()
def check_critics(module: Any, role: str, spaces: Spaces) -> None:
    """ValueError unless they are as `rlsurreal.models.critics` says."""
    trial = _Trial(module, role, "num_noise", "num_critics", "num_atoms")
    observation, action = (_zeros(space, (_ROWS,)) for space in (spaces.observation, spaces.action))
    noise = torch.zeros(module.num_critics, _ROWS, module.num_noise) if module.num_noise else None
    values = trial.run("forward", observation, action, noise)
    wanted: Leading = (module.num_critics, _ROWS)
    means = "one for each critic and row"
    if module.num_atoms is not None:
        wanted, means = (*wanted, module.num_atoms), "one for each critic, row and atom"
    trial.check("forward", "values", values, wanted, means)


@_aside()
def check_q_ensemble(module: Any, role: str, spaces: Spaces) -> None:
    """ValueError unless it is called, and answers, as `rlsurreal.models.QEnsemble`."""
    trial = _Trial(module, role, "num_noise", "num_critics")
    values = trial.run("forward", _zeros(spaces.observation, (_ROWS,)))
    wanted = (module.num_critics, _ROWS, int(spaces.action.n))  # type: ignore[attr-defined]
    trial.check("forward", "values", values, wanted, "one for each critic, row and action")


@_aside()
def check_recurrent_critics(module: Any, role: str, spaces: Spaces) -> None:
    """ValueError unless they are as `rlsurreal.models.recurrent_critics` says."""
    trial = _Trial(module, role, "num_noise", "num_critics", "initial_state", "remember")
    leading: Leading = (_STEPS, _ROWS)
    state, first = trial.initial_state(), torch.zeros(leading, dtype=torch.bool)
    features, after = trial.pair("remember", "features", _inputs(spaces, True, leading), state, first)
    trial.check("remember", "a state", after, _shapes(state), "as initial_state does")
    values = trial.run("forward", features, _zeros(spaces.action, leading))
    wanted = (module.num_critics, *leading)
    trial.check("forward", "values", values, wanted, "one for each critic, step and sequence")


@_aside()
def check_encoder(module: Any, observation_space: gym.Space) -> None:
    """ValueError unless it is as `rlsurreal.models.encoders` says of encoders of the user's own."""
    trial = _Trial(module, "an encoder", "out_features")
    found = trial.run("forward", _zeros(observation_space, (_ROWS,)))
    trial.check("forward", "features", found, (_ROWS, module.out_features), "out_features for each row")


# ---------------------------------------------------------------- what they have in common


class _Trial:
    """One model's methods called with zeros.  Everything raises ValueError where the model is not as it should be."""

    def __init__(self, module: Any, role: str, *members: str) -> None:
        """``members``: those that it must have."""
        self._module, self._role, self._name = module, role, type(module).__name__
        missing = [name for name in members if not hasattr(module, name)]
        if missing:
            raise ValueError(f"{self._name} has no {' and no '.join(missing)}, and {role} has: {_SEE}")
        for name, layer in module.named_modules():
            fault = _fault(layer) if layer.training else None
            if fault is not None:
                kind = type(layer).__name__
                raise ValueError(f"{self._name}.{name} is a {kind}, which {role} must not have: {fault}; {_SEE}")

    def error(self, member: str, found: str, wanted: str) -> ValueError:
        return ValueError(f"{self._name}.{member} {found}; {self._role} {wanted}: {_SEE}")

    def run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What a method gives; if it fails, whoever ran it first would be blamed."""
        try:
            return (self._module if method == "forward" else getattr(self._module, method))(*args, **kwargs)
        except Exception as error:
            found = f"was called with zeros and raised {type(error).__name__}: {error}"
            raise self.error(method, found, "takes them") from error

    def pair(self, method: str, what: str, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        """What a method gives that has two results, the second of them a state."""
        found = self.run(method, *args, **kwargs)
        if isinstance(found, NamedArrayTuple) or not (isinstance(found, tuple) and len(found) == 2):
            raise self.error(method, f"gave one {type(found).__name__}", f"gives two results, {what} and the state")
        return found[0], found[1]

    def check(self, method: str, what: str, found: Any, wanted: Any, means: str) -> None:
        """Compare shapes."""
        if _shapes(found) != wanted:
            raise self.error(method, f"gave {what} of shape {_shapes(found)}", f"gives {wanted}, {means}")

    def initial_state(self) -> Tree:
        state = self.run("initial_state", _ROWS)
        if not all(isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == _ROWS for leaf in leaves(state)):
            wanted = f"gives tensors [{_ROWS}, ...], several in a NamedArrayTuple, or None"
            raise self.error(f"initial_state({_ROWS})", f"gave {_shapes(state)}", wanted)
        return state

    def step(
        self,
        spaces: Spaces,
        outputs: str,
        wanted: Callable[[Leading], Any],
        means: str,
        more: Callable[[Leading], dict[str, Any]] = lambda leading: {},
    ) -> None:
        """Call ``forward`` for one step of two environments and, where there is memory, for a sequence.

        ``wanted``, ``more``: shapes of the outputs, and further arguments, by leading dimensions.
        """
        state, has_memory = self.initial_state(), self._module.recurrent
        for leading in ((_ROWS,), (_STEPS, _ROWS)) if has_memory else ((_ROWS,),):
            first = (torch.zeros(leading, dtype=torch.bool),) if len(leading) > 1 else ()
            inputs = _inputs(spaces, has_memory, leading)
            found, after = self.pair("forward", outputs, inputs, state, *first, **more(leading))
            self.check("forward", outputs, found, wanted(leading), means)
            self.check("forward", "a state", after, _shapes(state), "as initial_state does")


def _fault(layer: nn.Module) -> str | None:
    """What is wrong with a layer, and what to take instead.

    There is no switching between training and acting: both see one function of observations, row by row.
    """
    if isinstance(layer, _BatchNorm):
        return "a row's result depends on the others; use LayerNorm, or freeze it with .eval() if it comes trained"
    if isinstance(layer, LazyModuleMixin):
        return "weights are drawn when the model is built; give it its sizes"
    is_random = isinstance(layer, nn.RReLU) or (isinstance(layer, _DropoutNd) and layer.p > 0)
    if is_random or (isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and layer.dropout > 0):
        return (
            "it is random in acting, too; leave it out (dropout=0), or use LayerNorm (DroQ is "
            "CriticEnsemble(dropout=...), whose chance is an input)"
        )
    return None


def _shapes(value: Any) -> Any:
    """Shapes in the structure of ``value``, fields by name; of what is no tensor the type's name."""
    if isinstance(value, NamedArrayTuple):
        return {name: _shapes(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_shapes(part) for part in value)
    return tuple(value.shape) if isinstance(value, Tensor) else None if value is None else type(value).__name__


def _params_shapes(distribution: Distribution, leading: Leading) -> Any:
    free = distribution.free_init() if distribution.num_free else None
    return _shapes(distribution.params(torch.zeros(*leading, distribution.num_features), free))


def _inputs(spaces: Spaces, has_memory: bool, leading: Leading) -> AgentInputs:
    observation = _zeros(spaces.observation, leading)
    if not has_memory:
        return AgentInputs(observation)
    return AgentInputs(observation, _zeros(spaces.action, leading), torch.zeros(leading))


def _zeros(space: gym.Space, leading: Leading) -> Tree:
    return tree_map(lambda leaf: leaf.new_zeros((*leading, *leaf.shape)), to_torch(null_value(space)))
