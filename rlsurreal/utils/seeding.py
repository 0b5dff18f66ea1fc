"""Seeds and random streams: every source of chance in a run, keyed by what it is for.

Called by everything that draws random numbers: `derive_seed` gives environments, models and replays their seeds, and
`NoiseStreams` gives samplers the random numbers that agents act with.  Nothing here is saved with a checkpoint: the
seed and a row number say it all, so a resumed run, or one divided otherwise over workers and ranks, draws the same
numbers.
"""

from __future__ import annotations

import hashlib
import operator
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

BLOCK_ROWS = 128  # rows drawn at a time.  Part of the streams' definition: another value gives other numbers.
_MAX_BLOCKS = 3  # columns that run ahead or lag by less than two blocks touch three


class NoiseCounts(Protocol):
    """How many random numbers one environment needs for one row (`rlsurreal.structs.NoiseSpec`)."""

    @property
    def normal(self) -> int:
        """Standard normal ones."""

    @property
    def uniform(self) -> int:
        """Uniform ones in [0, 1)."""


def derive_seed(seed: int, *keys: int | str) -> int:
    """A seed in ``[0, 2**63)`` for the use that ``keys`` name, e.g. ``derive_seed(run_seed, "env", 17)``.

    Equal arguments give equal seeds on every machine; different ones give seeds that are unrelated and, in practice,
    different.  Libraries whose seeds are C integers take the result modulo ``2**31``.
    """
    return int(_sequence(seed, keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, keys: Sequence[int | str]) -> np.random.SeedSequence:
    if operator.index(seed) < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    # Hashed, because SeedSequence itself takes [2**32] and [0, 1] for the same, and knows no text.
    text = repr(tuple(key if isinstance(key, str) else operator.index(key) for key in keys))
    words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    return np.random.SeedSequence(operator.index(seed), spawn_key=words.tolist())


class NoiseStreams:
    """One random stream for each environment, addressed by row.

    There is no state: the numbers of a row depend on ``seed``, ``purpose``, the environment's global index, the row and
    the two counts only: not on the order of calls, nor on which other environments are in the same object.  Each stream
    is a Philox generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by (seed, purpose,
    environment); its counter is set anew for every block of `BLOCK_ROWS` rows.

    Args:
        seed: of the run.
        env_indices: global index of the environment in each of the ``B`` columns.
        counts: random numbers per environment and row.
        purpose: streams of different purposes (training, evaluation) are unrelated.
    """

    def __init__(self, seed: int, env_indices: Sequence[int], counts: NoiseCounts, *, purpose: str = "act") -> None:
        for name in ("normal", "uniform"):
            if getattr(counts, name) < 0:
                raise ValueError(f"NoiseSpec.{name} is {getattr(counts, name)}; it must be at least 0")
        if len(set(env_indices)) != len(env_indices):
            raise ValueError(f"env_indices {list(env_indices)} repeat; environments need streams of their own")
        self.num_envs = len(env_indices)
        self._num_normal, self._num_uniform = counts.normal, counts.uniform
        self._streams = [
            np.random.Generator(
                np.random.Philox(key=_sequence(seed, ("noise", purpose, env)).generate_state(2, np.uint64))
            )
            for env in env_indices
        ]
        self._states = [stream.bit_generator.state for stream in self._streams]
        self._blocks: OrderedDict[int, tuple[np.ndarray | None, np.ndarray | None]] = OrderedDict()
        self._current: int | None = None
        self._normal: np.ndarray | None = None
        self._uniform: np.ndarray | None = None

    def rows(self, row: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The numbers of all columns in row ``row``: ``(normal [B, n], uniform [B, m])``, None where the count is 0.

        Standard normal, and uniform in ``[0, 1)``; float32.  They are views that stay valid and must not be written.
        """
        block, offset = divmod(row, BLOCK_ROWS)
        if block != self._current:
            self._normal, self._uniform = self.block(block)
            self._current = block
        return (
            None if self._normal is None else self._normal[offset],
            None if self._uniform is None else self._uniform[offset],
        )

    def at(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The numbers of column ``columns[i]`` in row ``rows[i]`` (both ``[k]``): ``(normal [k, n], uniform [k, m])``.

        Any rows may be asked for; it is cheap while those of all columns lie within about two blocks.
        """
        blocks, offsets = np.divmod(rows, BLOCK_ROWS)
        first = int(blocks[0]) if len(blocks) else 0
        if (blocks == first).all():
            normal, uniform = self.block(first)
            where = offsets * self.num_envs + columns
            return (
                None if normal is None else normal.reshape(-1, self._num_normal).take(where, axis=0),
                None if uniform is None else uniform.reshape(-1, self._num_uniform).take(where, axis=0),
            )
        out_normal = np.empty((len(rows), self._num_normal), np.float32) if self._num_normal else None
        out_uniform = np.empty((len(rows), self._num_uniform), np.float32) if self._num_uniform else None
        for block in np.unique(blocks):
            here = blocks == block
            for out, source in zip((out_normal, out_uniform), self.block(int(block))):
                if out is not None and source is not None:
                    out[here] = source[offsets[here], columns[here]]
        return out_normal, out_uniform

    def block(self, block: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Rows ``block * BLOCK_ROWS`` and on: ``(normal [BLOCK_ROWS, B, n], uniform [BLOCK_ROWS, B, m])``.

        None where the count is 0; they must not be written.
        """
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        if block < 0:
            raise ValueError("rows are numbered from 0")
        while len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.popitem(last=False)
        normal = np.empty((self.num_envs, BLOCK_ROWS, self._num_normal), np.float32)
        uniform = np.empty((self.num_envs, BLOCK_ROWS, self._num_uniform), np.float32)
        for i, (stream, state) in enumerate(zip(self._streams, self._states)):
            # An upper word of the counter: the lower ones leave each block 2**128 steps of its own.
            state["state"]["counter"] = np.array([0, 0, block, 0], np.uint64)
            stream.bit_generator.state = state
            if self._num_normal:
                stream.standard_normal(dtype=np.float32, out=normal[i])
            if self._num_uniform:
                stream.random(dtype=np.float32, out=uniform[i])
        drawn = (
            np.ascontiguousarray(normal.swapaxes(0, 1)) if self._num_normal else None,
            np.ascontiguousarray(uniform.swapaxes(0, 1)) if self._num_uniform else None,
        )
        self._blocks[block] = drawn
        return drawn
