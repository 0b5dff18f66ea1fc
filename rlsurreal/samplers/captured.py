"""Choosing actions on a GPU as one launch: an agent's `act`, captured in a CUDA graph.  Used by `actor`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlsurreal.structs import Agent, AgentInputs, AgentStep, Noise
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.programs import capture_program
from rlsurreal.utils.torch_tree import to_device


class CapturedAct:
    """``agent.act`` for batches like ``inputs``, ``state`` and ``noise``, which may lie in the host's memory.

    The agent's parameters are read where they lie, so they must only be changed in place.

    Attributes:
        step, state: what the last call gave; on the agent's device, overwritten by the next one.

    Raises:
        CompileError: the agent cannot be captured (its `act` waits for the device, or its course depends on data).
    """

    def __init__(self, agent: Agent, inputs: AgentInputs, state: Tree, noise: Noise | None) -> None:
        results = agent.act(to_device(inputs, agent.device), state, to_device(noise, agent.device))
        self.step, self.state = tree_map(torch.empty_like, results[0]), tree_map(torch.empty_like, results[1])

        def act(step: AgentStep, new_state: Tree, inputs: AgentInputs, state: Tree, noise: Noise | None) -> None:
            for old, new in zip((step, new_state), agent.act(inputs, state, noise)):
                tree_map(Tensor.copy_, old, new)

        self._fixed: list[Tensor] = [*leaves(self.step), *leaves(self.state)]
        self._program = capture_program(act, 2, self.step, self.state, inputs, state, noise, compile=False)

    def run(self, inputs: Sequence[Tensor], state: Sequence[Tensor], noise: Sequence[Tensor]) -> None:
        """Act on the leaves of inputs, state and noise; queued, like all work on a GPU."""
        self._program.run([*self._fixed, *inputs, *state, *noise])
        self._program.forget()  # the memory may have been written anew by the next call
