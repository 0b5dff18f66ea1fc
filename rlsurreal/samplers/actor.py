"""Chooses the actions of some columns: an agent, its state and its random streams, over the slots.

Runs where actions are chosen: in the serial sampler, in workers with a copy of the agent, or in the inference server.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlsurreal.distributed.page_lock import page_lock
from rlsurreal.samplers.captured import CapturedAct
from rlsurreal.samplers.slots import AgentExample, FlatRows
from rlsurreal.structs import Agent, AgentInputs, AgentStep, CompilesAct, Noise, NoiseSpec, Samples, inputs_of
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.programs import Compile, CompileError, Program, should_compile
from rlsurreal.utils.seeding import BLOCK_ROWS, NoiseStreams
from rlsurreal.utils.spaces import null_value
from rlsurreal.utils.torch_tree import to_device, to_numpy, to_torch, where_first

_SECONDS_SAVED = 65e-6  # by compiling, in each choice of actions by a small network on one CPU core

_IMAGE_NDIM = 6  # slots, time, environments, channels, height and width

_log = logging.getLogger("rlsurreal")


class Actor:
    """Acts for ``columns`` of the slots, a contiguous part of them at a time or any of them."""

    def __init__(
        self,
        agent: Agent,
        slots: Samples,
        columns: slice,
        *,
        first_env: int,
        seed: int,
        state_interval: int,
        purpose: str = "act",
        deterministic: bool = False,
        programs: Mapping[int, Program] | None = None,
        capture: bool = False,
    ) -> None:
        """Args beyond the settings of the sampler.

        first_env: global index of column 0.
        purpose: keeps the streams of training and evaluation apart.
        programs: the agent's `act`, compiled, by number of columns (see `act_programs`); other numbers run eagerly.
        capture: on a GPU, have each number of columns that occurs as one CUDA graph.
        """
        self.agent = agent
        self._on_gpu = agent.device.type == "cuda"
        self._programs = {} if self._on_gpu or deterministic else dict(programs or {})
        self._capture = capture and self._on_gpu
        self._captured: dict[int, CapturedAct] = {}
        page_lock(slots, agent.device)
        self.flat = FlatRows(slots, columns)
        self._slots: list[Samples] = [to_torch(slots[s, :, columns]) for s in range(len(slots.env.reward))]
        self._recorded_states: Tree = to_torch(tree_map(lambda a: a[:, :, columns], slots.agent.agent_state))
        self.num_steps = self._slots[0].env.reward.shape[0] - 1
        self._state_interval = state_interval
        num_envs = columns.stop - columns.start
        self._everyone = slice(0, num_envs)
        self._deterministic, spec = deterministic, agent.noise_spec
        if deterministic:
            spec = NoiseSpec(uniform=spec.evaluation)
        envs = range(first_env + columns.start, first_env + columns.stop)
        has_noise = not deterministic or spec.uniform > 0
        self._noise = NoiseStreams(seed, envs, spec, purpose=purpose) if has_noise else None
        self.state = agent.initial_state(num_envs, first_env + columns.start)
        self._null_state = tree_map(torch.clone, self.state)
        self.num_slots_begun = 0
        self.first_row = 0  # number of the present slot's row 0, counted from the start: random numbers are keyed by it
        self._noise_block, self._noise_rows = -1, list[Noise]()  # random numbers of its rows, on the agent's device
        self._num_threads = acting_threads(slots, torch.get_num_threads())
        self._rows: dict[tuple[int, int, int], _Row] = {}
        self._calls: dict[int, _Call] = {}  # of `decide_at`, by number of columns

    def begin(self, slot: int) -> None:
        """Open a slot."""
        self._slot = slot
        self.first_row = self.num_slots_begun * self.num_steps
        self.num_slots_begun += 1
        self._slots[slot].policy_version.fill_(self.agent.version)

    def end(self) -> None:
        """Close the slot: record the state before row T."""
        if self.state is not None:
            self._apply_resets(self._slots[self._slot].env.first[self.num_steps], slice(None))
            self._record_state(self.num_steps)

    def act(self, t: int, part: slice) -> None:
        """Choose the actions of row t for the columns ``part`` (relative to this actor's first column)."""
        # All that stands around a program counts: after the environments' steps nothing of it is in the caches.
        key = (self._slot, t, part.start)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._make_row(t, part)
        if self.state is not None:
            self._apply_resets(row.first, part)
            if t % self._state_interval == 0:
                self._record_state(t, part)
        noise = None if self._noise is None else self._noise_of(t, part)
        with _Threads(self._num_threads):
            if row.program is not None:
                assert noise is not None
                row.bound[row.num_fixed :] = [numbers for numbers in noise if numbers is not None]
                row.program.run(row.bound)
            else:
                self._act_without_program(row, part, noise)

    @torch.inference_mode()
    def _act_without_program(self, row: _Row, part: slice, noise: Noise | None) -> None:
        step, state = self._decide(row.inputs, tree_map(lambda s: s[part], self.state), noise)
        tree_map(_copy, row.step, step)
        tree_map(lambda own, new: own.__setitem__(part, new), self.state, state)
        if self._on_gpu:
            torch.cuda.current_stream(self.agent.device).synchronize()

    def _make_row(self, t: int, part: slice) -> _Row:
        row = _Row(self._slots[self._slot][:, part], t)
        row.program = self._programs.get(part.stop - part.start)
        if row.program is not None:
            state = tree_map(lambda s: s[part], self.state)
            noise = self._noise_of(t, part)
            agent: Any = self.agent
            row.bound = row.program.bind(agent.act_tensors(), row.inputs, state, row.step, noise)
            row.num_fixed = len(row.bound) - len(leaves(noise))
        return row

    def act_at(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Choose actions for columns that stand at different rows: ``columns[i]`` at ``rows[i]`` since the start."""
        where = self.flat.index(rows, columns)
        inputs: AgentInputs = tree_map(lambda a: a[where], inputs_of(self.flat.samples))
        step = self.decide_at(inputs, self.flat.samples.env.first[where], rows, columns)
        self.record_at(where, step)

    def decide_at(self, inputs: AgentInputs, first: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> AgentStep:
        """Actions for ``inputs``, numpy ``[k]`` both; see `act_at`.  They are good until the next call.

        ``first``: bool ``[k]``: the state is null before this row.
        """
        inputs = to_torch(inputs)
        noise = None if self._noise is None else self._named(*self._noise.at(rows, columns))
        state = self.state
        if state is not None:
            state = self._states_at(rows, columns, torch.from_numpy(first).to(self.agent.device))
        program = self._programs.get(len(columns))
        with _Threads(self._num_threads):
            if program is not None:
                step = self._run(program, inputs, state, noise)
            else:
                step, state = self._decide_without_program(inputs, state, noise)
        if state is not None:
            who = torch.from_numpy(columns)
            tree_map(lambda own, new: own.__setitem__(who, new), self.state, state)
        return step

    @torch.inference_mode()
    def _decide_without_program(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        step, state = self._decide(inputs, state, noise)
        return to_numpy(tree_map(torch.Tensor.cpu, step)), state

    def _run(self, program: Program, inputs: AgentInputs, state: Tree, noise: Noise | None) -> AgentStep:
        """The program writes the next state into ``state``."""
        size = len(leaves(inputs)[0])
        call = self._calls.get(size)
        if call is None:
            agent: Any = self.agent
            step = tree_map(lambda a: torch.empty_like(a[0, :size]), _step(self._slots[0]))
            program.bind(agent.act_tensors(), inputs, state, step, noise)  # checks that they are what it was made for
            call = self._calls[size] = _Call(to_numpy(step), list(agent.act_tensors().values()), leaves(step))
        program.run([*call.fixed, *leaves(inputs), *leaves(state), *call.outputs, *leaves(noise)])
        return call.step

    def record_at(self, where: np.ndarray, step: AgentStep) -> None:
        """Write what `decide_at` gave; ``where``: see `FlatRows.index`."""
        tree_map(lambda own, new: own.__setitem__(where, new), _step(self.flat.samples), step)
        self.flat.samples.policy_version[where] = self.agent.version

    def _states_at(self, rows: np.ndarray, columns: np.ndarray, first: Tensor) -> Tree:
        """States ``[k]`` before ``rows``; recorded where that is due.  Row 0 is row T of the slot before, too."""
        slots, steps = np.divmod(rows, self.num_steps)
        who = torch.from_numpy(columns)
        state = where_first(first, tree_map(lambda s: s[who], self._null_state), tree_map(lambda s: s[who], self.state))
        if (steps % self._state_interval).all():  # none is due
            return state
        slot, t = torch.from_numpy(slots), torch.from_numpy(steps)
        due, start = t % self._state_interval == 0, t == 0
        last = torch.full_like(t, self.num_steps // self._state_interval)

        def record(to: Tensor, now: Tensor) -> None:
            now = now.to(to.device)
            to[slot[due] % len(to), t[due] // self._state_interval, who[due]] = now[due]
            to[(slot[start] - 1) % len(to), last[start], who[start]] = now[start]

        tree_map(record, self._recorded_states, state)
        return state

    def _decide(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        """On a GPU this only queues the work; what it gives is overwritten by the next call."""
        if self._capture:
            try:
                return self._decide_captured(inputs, state, noise)
            except CompileError as error:
                self._capture = False
                _log.warning("acting cannot be captured and runs eagerly (compile='off' is quiet): %s", error)
        if self._on_gpu:
            inputs = to_device(inputs, self.agent.device)
            noise = to_device(noise, self.agent.device)
        return self.agent.act(inputs, state, noise)

    def _decide_captured(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        input_leaves = leaves(inputs)
        size = len(input_leaves[0])
        captured = self._captured.get(size)
        if captured is None:
            captured = self._captured[size] = CapturedAct(self.agent, inputs, state, noise)
        captured.run(input_leaves, leaves(state), leaves(noise))
        return captured.step, captured.state

    def _noise_of(self, t: int, part: slice) -> Noise:
        assert self._noise is not None
        block, offset = divmod(self.first_row + t, BLOCK_ROWS)
        if block != self._noise_block:
            drawn: Noise = to_device(self._named(*self._noise.block(block)), self.agent.device)
            self._noise_block, self._noise_rows = block, [drawn[i] for i in range(BLOCK_ROWS)]
        noise = self._noise_rows[offset]
        return noise if part == self._everyone else noise[part]

    def _named(self, normal: np.ndarray | None, uniform: np.ndarray | None) -> Noise:
        noise: Noise = to_torch(Noise(evaluation=uniform) if self._deterministic else Noise(normal, uniform))
        return noise

    def _apply_resets(self, first: torch.Tensor, part: slice) -> None:
        if bool(first.any()):
            first = first.to(self.agent.device)
            state = tree_map(lambda s: s[part], self.state)
            null = tree_map(lambda s: s[part], self._null_state)
            tree_map(lambda own, new: own.__setitem__(part, new), self.state, where_first(first, null, state))

    def _record_state(self, t: int, part: slice = slice(None)) -> None:
        recorded = self._slots[self._slot].agent.agent_state
        tree_map(lambda to, own: to[t // self._state_interval, part].copy_(own[part]), recorded, self.state)

    def get_state(self) -> dict[str, Any]:
        """What must be kept to continue bit for bit; random streams need their position only."""
        state = tree_map(lambda s: s.to("cpu", copy=True), self.state)  # it may be loaded where this device is not
        return {"state": state, "num_slots_begun": self.num_slots_begun}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `get_state`."""
        tree_map(lambda own, saved: own.copy_(saved), self.state, state["state"])
        self.num_slots_begun = state["num_slots_begun"]


@dataclass
class _Call:
    """What every call of a program for so many columns has in common."""

    step: AgentStep  # where it writes, as numpy
    fixed: list[Tensor]
    outputs: list[Tensor]  # the leaves of `step`


class _Row:
    """Views of what an agent reads and writes in one row, made once."""

    def __init__(self, samples: Samples, t: int) -> None:
        self.inputs = tree_map(lambda a: a[t], inputs_of(samples))
        self.first = samples.env.first[t]
        self.step = tree_map(lambda a: a[t], _step(samples))
        self.program: Program | None = None
        self.bound: list[Tensor] = []  # the program's tensors; those from `num_fixed` on are this row's noise
        self.num_fixed = 0


def _step(samples: Samples) -> AgentStep:
    return AgentStep(samples.agent.action, samples.agent.agent_info)


def _copy(destination: torch.Tensor, source: torch.Tensor) -> None:
    destination.copy_(source, non_blocking=True)


def acting_threads(slots: Samples, num_threads: int) -> int:
    """How many threads of torch, of ``num_threads``, choose actions: all for images, else one.

    For small networks a second thread gains nothing.  And it waits for work by spinning, or is waited for where an
    environment has its core: then a call of 80 microseconds was seen to take 15 milliseconds.
    """
    has_images = any(leaf.ndim >= _IMAGE_NDIM for leaf in leaves(slots.env.observation))
    return num_threads if has_images else 1


class _Threads:
    """So many threads of torch within."""

    __slots__ = ("_before", "_num_threads")

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._num_threads:
            torch.set_num_threads(self._num_threads)

    def __exit__(self, *_: object) -> None:
        if self._before != self._num_threads:
            torch.set_num_threads(self._before)


def act_programs(
    agent: Agent,
    slots: Samples,
    sizes: Collection[int],
    device: torch.device,
    num_threads: int,
    compile: Compile,
    num_slots: int | None,
) -> dict[int, Program]:
    """The agent's `act`, compiled for each number of columns in ``sizes``; none where it runs eagerly, or on a GPU.

    Args:
        agent: that acts, or whose copies do.
        slots: that they write into.
        sizes: numbers of columns.
        device: on which they act.
        num_threads: of torch where they act; see `acting_threads`.
        compile: whether to compile.
        num_slots: to be filled, if that is known.
    """
    num_steps = slots.env.reward.shape[1] - 1
    num_calls = None if num_slots is None else num_slots * num_steps
    if device.type != "cpu" or not should_compile(compile, num_calls, _SECONDS_SAVED):
        return {}
    if not isinstance(agent, CompilesAct) or not sizes:
        if compile == "on":
            _log.warning(
                "acting is not compiled: that needs an agent with compile_act, and batches of one size (a dynamic "
                "inference server has none)"
            )
        return {}
    num_threads = acting_threads(slots, num_threads)
    programs = {}
    for size in set(sizes):
        row, spec = _Row(to_torch(slots[0, :, :size]), 0), agent.noise_spec
        noise = Noise(*(torch.zeros(size, count) if count else None for count in (spec.normal, spec.uniform)))
        try:
            programs[size] = agent.compile_act(row.inputs, agent.initial_state(size), noise, row.step, num_threads)
        except CompileError as error:
            _log.warning("acting cannot be compiled and runs eagerly (compile='off' is quiet): %s", error)
            return {}
    return programs


@torch.inference_mode()
def agent_example(agent: Agent) -> AgentExample:
    """What ``agent`` would write for one environment, found by asking it once about null inputs."""
    null = to_torch(tree_map(lambda a: a[None], null_value(agent.spaces.observation)))
    prev_action = to_torch(tree_map(lambda a: np.asarray(a)[None], null_value(agent.spaces.action)))
    inputs = AgentInputs(null, prev_action, torch.zeros(1)) if agent.uses_previous else AgentInputs(null)
    state = agent.initial_state(1)
    spec = agent.noise_spec
    noise = Noise(
        torch.zeros(1, spec.normal) if spec.normal else None,
        torch.full((1, spec.uniform), 0.5) if spec.uniform else None,
    )
    step, _ = agent.act(to_device(inputs, agent.device), state, to_device(noise, agent.device))
    first = lambda tree: to_numpy(tree_map(lambda t: t[0].cpu(), tree))  # noqa: E731
    return AgentExample(first(step.action), first(step.agent_info), first(state), agent.uses_previous)
