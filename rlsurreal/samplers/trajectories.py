"""Statistics of whole games, computed from finished slots by whoever hands them out.

Doing it here, and not where environments step, keeps the step loop short and needs no channel between processes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rlsurreal.structs import EnvSamples, TrajInfo


class TrajectoryTracker:
    """Follows the games of ``num_envs`` environments from slot to slot.

    A game ends where ``env_info.game_over`` says so if that is recorded (a life lost ends the learner's episode, not
    the game), otherwise where the episode does.  ``env_info.score`` is the reward before clipping, if recorded.  All
    other numbers that are recorded are taken from the game's last row: whether it succeeded, for example.
    """

    def __init__(self, num_envs: int, first_env: int, discount: float, *, drop_first: bool = False) -> None:
        """``drop_first``: each environment's first game does not count, for it began before the first slot."""
        self._first_env = first_env
        self._discount = discount
        self._drop = np.full(num_envs, drop_first)
        self._episode_ended = np.zeros(num_envs, dtype=bool)  # in the row before
        self._sums = np.zeros((4, num_envs))  # total reward, length, discounted return, score
        self._weight = np.ones(num_envs)  # discount ** length

    def update(self, env: EnvSamples) -> list[TrajInfo]:
        """The games that ended in this slot (numpy fields ``[T + 1, B]``), in the order of their ends."""
        info = env.env_info
        score = info.score if info is not None and "score" in info else env.reward
        over = info.game_over if info is not None and "game_over" in info else env.terminated
        num_steps = len(env.reward) - 1
        over = over[:num_steps] | env.truncated[:num_steps]
        done = env.terminated[:num_steps] | env.truncated[:num_steps]
        # A reset row that no end led to: the game was lost with its worker, and counts for nothing.
        # (A row that is `first` already is not the one that an end leads to.)
        led_to = np.concatenate([self._episode_ended[None], done[:-1]]) & ~env.first[:num_steps]
        restart = ~env.valid[:num_steps] & env.first[1:] & ~led_to
        self._episode_ended = done[-1].copy()
        special = (over | restart).any(axis=1).tolist()
        # As few operations a row as can be: the sampler waits meanwhile.
        reward, valid = env.reward[:num_steps].astype(np.float64), env.valid[:num_steps]
        terms = np.stack([reward, valid, np.zeros_like(reward), np.where(valid, score[:num_steps], 0)], axis=1)
        decay = np.where(valid, self._discount, 1)
        discounted_terms = terms[:, 2]
        numbers = {} if info is None else {name: x for name, x in info.items() if _is_number(name, x)}
        ended: list[TrajInfo] = []
        for t in range(num_steps):
            np.multiply(self._weight, reward[t], out=discounted_terms[t])
            self._sums += terms[t]
            self._weight *= decay[t]
            if special[t]:
                for b in np.flatnonzero(over[t] & ~self._drop).tolist():
                    said = {name: float(x[t, b]) for name, x in numbers.items() if np.isfinite(x[t, b])}
                    ended.append(dataclasses.replace(self._info(b), info=said))
                finished = over[t] | restart[t]
                self._drop &= ~finished
                self._sums[:, finished] = 0
                self._weight[finished] = 1
        return ended

    def _info(self, b: int) -> TrajInfo:
        total, length, discounted, score = self._sums[:, b].tolist()
        return TrajInfo(
            env=self._first_env + b,
            total_reward=total,
            length=int(length),
            discounted_return=discounted,
            score=score,
        )

    def cut_long_games(self, max_steps: int) -> list[TrajInfo]:
        """Give up games that have lasted longer than ``max_steps``: what they came to so far."""
        long = self._sums[1] > max_steps
        cut = [self._info(b) for b in np.flatnonzero(long).tolist()]
        self._sums[:, long] = 0
        self._weight[long] = 1
        self._drop |= long  # what is still to come of them
        return cut

    def get_state(self) -> dict[str, np.ndarray]:
        """The games in progress."""
        return {
            "sums": self._sums.copy(),
            "weight": self._weight.copy(),
            "drop": self._drop.copy(),
            "episode_ended": self._episode_ended.copy(),
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue the games of `get_state`."""
        self._sums[:], self._weight[:] = state["sums"], state["weight"]
        self._drop[:], self._episode_ended[:] = state["drop"], state["episode_ended"]


def _is_number(name: str, values: Any) -> bool:
    return name not in ("score", "game_over") and isinstance(values, np.ndarray) and values.ndim == 2
