"""Steps a batch of environments through a slot.

Torch-free: the same collector runs in the serial sampler, in workers that choose actions themselves, and in workers
whose actions come from an inference server.  Who calls it puts the actions of row t into the slot before
`Collector.step` of row t.
"""

from __future__ import annotations

import numpy as np

from rlsurreal.samplers.slots import SlotViews, copy_rows
from rlsurreal.structs import EnvStep, VectorEnv
from rlsurreal.utils.namedarraytuple import Tree, tree_map
from rlsurreal.utils.spaces import random_actions


class Collector:
    """One vector environment and its columns of the slots."""

    def __init__(
        self,
        env: VectorEnv,
        views: SlotViews,
        *,
        mid_batch_reset: bool = True,
        rows_done: np.ndarray | None = None,
        slots_begun: np.ndarray | None = None,
    ) -> None:
        """``rows_done``, ``slots_begun``: int64 [], count what they say, for whoever watches over this process."""
        self.env = env
        self.views = views
        self.mid_batch_reset = mid_batch_reset
        self._rows_done = np.zeros((), np.int64) if rows_done is None else rows_done
        self._slots_begun = np.zeros((), np.int64) if slots_begun is None else slots_begun
        self._taken_over: Tree = None  # first observations, where the environments replace lost ones
        self._previous: int | None = None  # the slot filled last
        # Environments that are left alone: those waiting for the slot's end, and those put on hold by an evaluation.
        self.on_hold = np.zeros(views.num_envs, dtype=bool)
        self._skip: np.ndarray | None = None

    def start(self, *, max_decorrelation_steps: int = 0, seed: int = 0, first_env: int = 0) -> None:
        """Reset all environments, and bring each to a random point of its first episode by uniformly random actions."""
        env_samples = self.views.slots[-1].env  # row T of the slot before the first one
        row = self.views.num_steps
        observation = env_samples.observation[row]
        self.env.reset(observation)
        env_samples.first[row] = True
        if env_samples.prev_reward is not None:
            env_samples.prev_reward[row] = 0
            tree_map(lambda array: array[row].fill(0), self.views.slots[-1].agent.prev_action)
        if max_decorrelation_steps > 0:
            self._decorrelate(observation, max_decorrelation_steps, seed, first_env)
        self._previous = self.views.num_slots - 1

    def take_over(self, slot: int, has_begun: bool) -> None:
        """Stand in for environments that were lost in ``slot``: its row 0 will be a reset row.

        Row 0 keeps the last observation that was whole, so that the row before it has a successor to bootstrap from.
        """
        self._taken_over = tree_map(np.copy, self.views.steps[slot][0].observation)
        self.env.reset(self._taken_over)
        self._previous = None if has_begun else (slot - 1) % self.views.num_slots

    def _decorrelate(self, observation: Tree, max_steps: int, seed: int, first_env: int) -> None:
        rngs = [np.random.default_rng((seed, first_env + b)) for b in range(self.views.num_envs)]
        num_steps = np.array([rng.integers(max_steps + 1) for rng in rngs])
        scratch: EnvStep = tree_map(np.copy, self.views.steps[0][0])
        for k in range(max_steps):
            skip = k >= num_steps
            if skip.all():
                return
            action = tree_map(np.copy, self.views.actions[0][0])
            for b, rng in enumerate(rngs):
                action[b] = random_actions(self.env.spaces.action, rng)
            self.env.step(action, scratch, skip if skip.any() else None)
            observation[~skip] = scratch.observation[~skip]

    def begin(self, slot: int) -> None:
        """Open a slot: its row 0 is row T of the slot before."""
        if self._previous is not None:  # or row 0 is there already
            self._copy_row_0(slot, self._previous)
            self._slots_begun += 1
        self._previous = slot
        self._skip = self.on_hold.copy() if self.on_hold.any() else None

    def _copy_row_0(self, slot: int, previous: int) -> None:
        row = self.views.num_steps
        samples, before = self.views.slots[slot], self.views.slots[previous]
        copy_rows(samples.env.observation, 0, before.env.observation, row)
        samples.env.first[0] = before.env.first[row]
        if samples.env.prev_reward is not None:
            samples.env.prev_reward[0] = before.env.prev_reward[row]
            copy_rows(samples.agent.prev_action, 0, before.agent.prev_action, row)

    def step(self, slot: int, t: int) -> None:
        """Apply the actions of row t; write the rest of row t, and what row t+1 begins with."""
        out = self.views.steps[slot][t]
        if self._taken_over is not None:
            self._write_taken_over(out)
            self._write_previous(slot, t)
            return
        skip = self._skip
        self.env.step(self.views.actions[slot][t], out, skip)
        self._rows_done += 1
        if skip is not None:
            self._repeat_row(slot, t, skip)
        if not self.mid_batch_reset:
            # An end that `first` does not follow at once asks for a reset, which waits for the slot's end.
            ended = (out.terminated | out.truncated) & ~out.first
            if ended.any():
                self._skip = ended if skip is None else skip | ended
        self._write_previous(slot, t)

    def _repeat_row(self, slot: int, t: int, skip: np.ndarray) -> None:
        env = self.views.slots[slot].env
        tree_map(lambda array: array[t + 1].__setitem__(skip, array[t][skip]), env.observation)
        env.first[t + 1][skip] = env.first[t][skip]

    def _write_taken_over(self, out: EnvStep) -> None:
        """A reset row: the first observations of the new environments come after it."""
        for array, value in ((out.reward, 0), (out.terminated, 0), (out.truncated, 0), (out.valid, 0), (out.first, 1)):
            array[...] = value
        tree_map(lambda array: array.fill(0), out.env_info)
        out.observation[...] = self._taken_over
        self._taken_over = None

    def _write_previous(self, slot: int, t: int) -> None:
        samples = self.views.slots[slot]
        if samples.env.prev_reward is None:
            return
        first = samples.env.first[t + 1]
        any_first = first.any()

        def shift(previous: np.ndarray, now: np.ndarray) -> None:
            previous[t + 1] = now[t]
            if any_first:
                previous[t + 1][first] = 0

        tree_map(shift, samples.agent.prev_action, samples.agent.action)
        shift(samples.env.prev_reward, samples.env.reward)
