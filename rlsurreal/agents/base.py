"""What all agents share: building the model from a spec, and the way of its parameters to the agent's copies.

    learner's process                    other processes
    agent.share() ---- SharedParameters ----> copy.follow(link)
    agent.publish(version) --> memory --> copy.pull()

Called by runners (publish), samplers (share, follow, pull, act) and algorithms (the model).
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rlsurreal.distributed.parameters import Publication, SharedParameters
from rlsurreal.structs import AgentInputs, AgentStep, Noise, Spaces
from rlsurreal.utils.namedarraytuple import Tree, tree_map
from rlsurreal.utils.programs import Program, compile_program
from rlsurreal.utils.torch_tree import load_saved, named_tensors


@dataclass(kw_only=True, eq=False)
class ModelSpec:
    """A model by name: a `torch.nn.Module` class and the keyword arguments that are the user's to choose."""

    cls: type[nn.Module]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError where the class knows no such ``kwargs``, whatever it will be given besides."""
        if isinstance(self.cls, type):
            signature = self._signature()
            try:
                signature.bind_partial(**self.kwargs)
            except TypeError as error:
                parameters = signature.parameters.values()
                known = [p.name for p in parameters if p.default is not p.empty or p.kind is p.KEYWORD_ONLY]
                why = f"{error}; the arguments to choose are: {', '.join(known) or 'none'}"
                raise self._misfit(why) from error

    def build(self, *, seed: int, **given: Any) -> nn.Module:
        """What `make` gives, with initial weights drawn from ``seed``; other random streams are left alone.

        Weights are drawn on the CPU, so that they do not depend on the device.
        """
        with torch.device("cpu"), torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators for good
            return self.make(**given)

    def make(self, **given: Any) -> nn.Module:
        """``cls(*given.values(), **kwargs)``; names of what is given are for messages.

        Raises:
            ValueError: ``kwargs`` do not fit the class, whose constructor may be a wrong one, or it builds no module.
        """
        self._check(given)
        module = self.cls(*given.values(), **self.kwargs)
        if not isinstance(module, nn.Module):
            raise ValueError(f"ModelSpec.cls is {self.cls!r}; it must be a class of torch.nn.Module")
        return module

    def _check(self, given: Mapping[str, Any]) -> None:
        name, signature = self.cls.__name__, self._signature()
        try:
            signature.bind(*given.values(), **self.kwargs)
        except TypeError as error:
            known = ", ".join(list(signature.parameters)[len(given) :])
            raise self._misfit(
                f"{error}; it is built as {name}({', '.join(given)}, **kwargs), and the arguments to choose are: "
                f"{known or 'none'}"
            ) from error

    def _signature(self) -> inspect.Signature:
        # That of nn.Module's own constructor promises more than it takes.
        has_own = self.cls.__init__ is not nn.Module.__init__
        return inspect.signature(self.cls) if has_own else inspect.Signature()

    def _misfit(self, why: str) -> ValueError:
        return ValueError(f"ModelSpec.kwargs is {self.kwargs}, which does not fit {self.cls.__name__}: {why}")


@dataclass(kw_only=True, eq=False)
class ModelAgent:
    """An agent around one model.  Subclasses build it in `initialize` (see `_set_up`) and add how to act."""

    def _set_up(self, spaces: Spaces, module: nn.Module, device: str | torch.device) -> None:
        self.spaces = spaces
        self.device = torch.device(device)
        self.module = module.to(self.device)
        self.version = 0
        self._link: SharedParameters | None = None

    @property
    def _role(self) -> str:
        """What its model is, in messages."""
        return f"a model of {type(self).__name__}"

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers by name: what is published and saved."""
        return self.module.state_dict()

    def share(self) -> SharedParameters:
        """Open the way to copies in other processes; from now on `publish` writes there."""
        if self._link is None:
            self._link = SharedParameters(self.tensors())
            self._link.publish(self.tensors(), self.version)
        return self._link

    def publish(self, version: int) -> None:
        """Make the present parameters, as ``version``, available to every copy of this agent."""
        self.version = version
        if self._link is not None:
            self._link.publish(self.tensors(), version)

    def follow(self, link: SharedParameters) -> None:
        """Be a copy: take parameters from ``link`` at every `pull`."""
        self._followed = link
        self._taken: Publication | None = None
        self._own_tensors = dict(self.tensors())
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.pull()

    def pull(self) -> None:
        """Take the newest published parameters, if they are new."""
        self.version, self._taken = self._followed.pull(self._own_tensors, self._taken)

    @abstractmethod
    def act(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        """Choose actions; see `rlsurreal.structs.Agent`."""

    def act_tensors(self) -> dict[str, torch.Tensor]:
        """What `act` computes with."""
        return named_tensors(self.module)

    def compile_act(self, inputs: AgentInputs, state: Tree, noise: Noise, step: AgentStep, num_threads: int) -> Program:
        """See `rlsurreal.structs.CompilesAct`."""
        acting = _Acting(self)

        def act(
            tensors: dict[str, torch.Tensor], inputs: AgentInputs, state: Tree, step: AgentStep, noise: Noise
        ) -> None:
            own = {f"module.{name}": tensor for name, tensor in tensors.items()}
            with torch.no_grad():
                new = torch.func.functional_call(acting, own, (inputs, state, noise), tie_weights=False)
                for old, result in zip((step, state), new):
                    tree_map(torch.Tensor.copy_, old, result)

        # It will run on a CPU, wherever this agent is.
        tensors = {name: tensor.cpu() for name, tensor in self.act_tensors().items()}
        state = tree_map(torch.Tensor.cpu, state)
        return compile_program(act, tensors, inputs, state, step, noise, num_threads=num_threads)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the agent."""
        return {
            "module": {name: tensor.detach().clone() for name, tensor in self.tensors().items()},
            "version": self.version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, and publish.

        Raises:
            ValueError: it is that of another network.
        """
        load_saved(self.module, state["module"], "network", "agent.model")
        self.publish(int(state["version"]))


class _Acting(nn.Module):
    """A module whose forward pass is an agent's `act`, so that `torch.func.functional_call` can put in its tensors."""

    def __init__(self, agent: ModelAgent) -> None:
        super().__init__()
        self.module = agent.module
        self._agent = agent

    def forward(self, inputs: AgentInputs, state: Tree, noise: Noise) -> tuple[AgentStep, Tree]:
        return self._agent.act(inputs, state, noise)
