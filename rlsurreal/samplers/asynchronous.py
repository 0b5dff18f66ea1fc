"""Sampling from a native engine asynchronously: whichever environments are ready get their actions, the others go on.

    recv (whoever is ready) -> act on what they saw -> send -> write their rows

Each environment stands at a row of its own.  A slot is full when the last environment has filled it; by then others are
in the next one, which is why there are two.  Rows that run ahead were chosen by the parameters before the update, as
``policy_version`` says.  Steps that are under way when a slot is full are received for the next.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from rlsurreal.envs.native import AsyncResults, AsyncVectorEnv
from rlsurreal.samplers.actor import Actor, act_programs, agent_example
from rlsurreal.samplers.base import EvalSpec
from rlsurreal.samplers.serial import SerialSampler
from rlsurreal.samplers.slots import allocate_slots
from rlsurreal.structs import Agent, AgentInputs, BatchSpec, EnvSamples, Samples, Spaces, inputs_of
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.programs import Compile

_NUM_SLOTS = 2


@dataclass(kw_only=True, eq=False)
class AsyncSampler(SerialSampler):
    """A native engine in this process, driven through send and receive."""

    # Environments that are served together: wait for so many; fewer than batch.num_envs overlap inference.
    num_ready: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_ready <= self.batch.num_envs:
            raise ValueError(
                f"num_ready is {self.num_ready}; it must lie between 1 and batch.num_envs={self.batch.num_envs}"
            )
        if self.batch.num_steps == 1 and self.num_ready < self.batch.num_envs:
            raise ValueError(
                f"batch.num_steps is 1 and num_ready {self.num_ready}: no environment can be a row ahead of the "
                f"others; use num_ready={self.batch.num_envs}, or longer slots"
            )
        if not hasattr(self.env, "make_async"):
            raise ValueError(
                f"AsyncSampler.env is a {type(self.env).__name__}, which has no send and receive; use EnvPoolEnv or "
                "AleEnv, or another sampler"
            )
        if not self.mid_batch_reset or self.max_decorrelation_steps:
            raise ValueError(
                "native engines go on by themselves: AsyncSampler needs mid_batch_reset=True and "
                "max_decorrelation_steps=0"
            )

    def divided(self, batch: BatchSpec, evaluation: EvalSpec) -> Self:
        """See `SamplerSettings.divided`."""
        num_ready = max(1, self.num_ready * batch.num_envs // self.batch.num_envs)
        return dataclasses.replace(self, batch=batch, evaluation=evaluation, num_ready=num_ready)

    def connect(self, *, seed: int) -> Spaces:
        """Build the engine."""
        self._seed, self._generation = seed, 0
        self._env = self._make_env(seed)
        self._eval = None
        self._check_evaluation(seed)
        return self._env.spaces

    def _make_env(self, seed: int) -> Any:
        spec: Any = self.env
        return spec.make_async(self.batch.num_envs, self.batch.first_env, seed, batch_size=self.num_ready)

    def _make_station(self, seed: int) -> Any:
        engine: Any = self._env
        return AsyncStation(
            engine, self._agent, self.batch, seed=seed, state_interval=self.state_interval, compile=self._compile
        )


class AsyncStation:
    """An engine, its two slots, and the actor that plays it."""

    problem: str | None = None  # to tell of: that it cannot be saved is no news

    def __init__(
        self,
        engine: AsyncVectorEnv,
        agent: Agent,
        batch: BatchSpec,
        *,
        seed: int,
        state_interval: int | None,
        compile: tuple[Compile, int | None],
    ) -> None:
        interval = state_interval or batch.num_steps
        self.slots: Samples = allocate_slots(
            _NUM_SLOTS,
            batch,
            engine.spaces,
            engine.info_example,
            agent_example(agent),
            state_interval=interval,
            shared=agent.device.type == "cuda",  # which can be page-locked
        )
        self.next_slot = 0
        self._engine, self._num_steps = engine, batch.num_steps
        self._actor = Actor(
            agent,
            self.slots,
            slice(0, batch.num_envs),
            first_env=batch.first_env,
            seed=seed,
            state_interval=interval,
            programs=act_programs(
                agent, self.slots, [engine.batch_size], agent.device, torch.get_num_threads(), *compile
            ),
            capture=compile[0] != "off",
        )
        self._last_action = tree_map(lambda a: np.zeros_like(a[0, 0]), self.slots.agent.action)  # [B]
        self._row = np.full(batch.num_envs, -1)  # whose action is under way, counted from the start
        self._num_full = 0  # slots
        engine.start()

    def fill(self) -> EnvSamples:
        """Go on until the next slot is full; its numpy arrays."""
        num_steps = self._num_steps
        end = (self._num_full + 1) * num_steps
        limit = end + num_steps  # this row would fall into the slot that is being filled
        # An environment is done when its action of row `end` is under way: its rows before are written then.
        while self._row.min() < end:
            results = self._engine.recv()
            who = results.env_ids
            rows = self._row[who] + 1
            if rows.max() >= limit:
                ahead = int(who[rows.argmax()])
                raise RuntimeError(
                    f"environment {ahead} is a whole slot ahead of environment {int(self._row.argmin())}; use a "
                    f"larger batch.num_steps (it is {num_steps}), or lock step"
                )
            inputs = self._inputs(results)
            step = self._actor.decide_at(inputs, results.first, rows, who)
            self._engine.send(step.action, who)
            # The engine is at work again; the bookkeeping can wait until now.
            where = self._actor.flat.index(rows, who)
            self._write(results, inputs, rows, where)
            self._actor.record_at(where, step)
            if self.slots.agent.prev_action is not None:
                self._last_action[who] = step.action
            self._row[who] = rows
        full = self.slots[self.next_slot]
        self._num_full += 1
        self.next_slot = self._num_full % _NUM_SLOTS
        return full.env

    def _inputs(self, results: AsyncResults) -> AgentInputs:
        """What the agent sees of ``results``."""
        if self.slots.agent.prev_action is None:
            return AgentInputs(results.observation)
        null = results.first
        previous = self._last_action[results.env_ids]
        previous[null] = 0
        return AgentInputs(results.observation, previous, np.where(null, 0, results.reward).astype(np.float32))

    def _write(self, results: AsyncResults, inputs: AgentInputs, rows: np.ndarray, where: np.ndarray) -> None:
        """What the actions before ``rows`` led to, and what the agent sees in them; ``where`` they lie."""
        flat = self._actor.flat
        self._write_inputs(inputs, results.first, where)
        before = where - flat.num_envs
        starts = rows % self._num_steps == 0
        if starts.any():  # row 0 of a slot is row T of the slot before; nobody has seen that before the first
            last = flat.index(rows[starts] - 1, results.env_ids[starts]) + flat.num_envs
            self._write_inputs(inputs[starts], results.first[starts], last)
            before[starts] = last - flat.num_envs
        env = flat.samples.env
        env.reward[before] = results.reward
        env.terminated[before] = results.terminated
        env.truncated[before] = results.truncated
        env.valid[before] = ~results.was_reset
        if env.env_info is not None:
            tree_map(lambda own, new: own.__setitem__(before, new), env.env_info, results.env_info)

    def _write_inputs(self, inputs: AgentInputs, first: np.ndarray, where: np.ndarray) -> None:
        samples = self._actor.flat.samples
        tree_map(lambda to, new: to.__setitem__(where, new), inputs_of(samples), inputs)
        samples.env.first[where] = first

    def get_state(self) -> dict[str, Any]:
        """Nothing: steps under way cannot be saved."""
        return {}

    def set_state(self, state: dict[str, Any]) -> bool:
        """False: environments begin new episodes."""
        return False
