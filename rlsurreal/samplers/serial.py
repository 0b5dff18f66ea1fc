"""Sampling in one process: the plainest sampler, and the definition of what all others must produce."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlsurreal.distributed.shared_arrays import plain
from rlsurreal.samplers.actor import Actor, act_programs, agent_example
from rlsurreal.samplers.base import (
    SamplerSettings,
    SlotBoard,
    check_engine_can_wait,
    check_spaces_agree,
    play_episodes,
)
from rlsurreal.samplers.collector import Collector
from rlsurreal.samplers.local import fill_slot
from rlsurreal.samplers.slots import SlotViews, allocate_slots
from rlsurreal.samplers.trajectories import TrajectoryTracker
from rlsurreal.structs import Agent, BatchSpec, EnvSamples, HasState, Samples, Spaces, TrajInfo, VectorEnv, never
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.plain import to_plain
from rlsurreal.utils.programs import Compile
from rlsurreal.utils.seeding import derive_seed

_log = logging.getLogger("rlsurreal")


@dataclass(kw_only=True, eq=False)
class SerialSampler(SamplerSettings):
    """Environments and agent in this process, one slot."""

    _has_told_problem = False  # with the environments' state

    def connect(self, *, seed: int) -> Spaces:
        """Build the environments."""
        self._seed = seed
        self._generation = 0  # how often environments were made anew, because their state could not be restored
        self._eval: Station | None = None
        self._env = self._make_env(seed)
        check_engine_can_wait(self, self._env.can_skip)
        self._check_evaluation(seed)
        return self._env.spaces

    def _check_evaluation(self, seed: int) -> None:
        """What would be found at the first evaluation, hours later."""
        if self.evaluation.env is not None:
            env = self.evaluation.env.make(1, 0, seed)
            try:
                check_spaces_agree(self._env.spaces, env.spaces)
            finally:
                env.close()

    def _make_env(self, seed: int) -> VectorEnv:
        return self.env.make(self.batch.num_envs, self.batch.first_env, seed)

    def initialize(
        self, agent: Agent, *, discount: float, compile: Compile = "off", num_iterations: int | None = None
    ) -> None:
        """Allocate the slot and reset the environments."""
        self._agent, self._discount = agent, discount
        self._compile: tuple[Compile, int | None] = compile, num_iterations
        self._trajectories: list[TrajInfo] = []
        self._set_up(self._seed)

    def _set_up(self, seed: int) -> None:
        self._train = self._make_station(seed)
        self._board = SlotBoard(self._train.slots, self._agent.device)
        self._tracker = self._make_tracker()

    def _start_generation(self, generation: int) -> None:
        """New environments, whose episodes and random numbers are not those of the generations before."""
        self._generation = generation
        self._env.close()
        seed = derive_seed(self._seed, "resumed", generation)
        self._env = self._make_env(seed)
        self._set_up(seed)

    def _make_tracker(self) -> TrajectoryTracker:
        return TrajectoryTracker(
            self.batch.num_envs, self.batch.first_env, self._discount, drop_first=self.max_decorrelation_steps > 0
        )

    def _make_station(self, seed: int) -> Station:
        station = Station(
            self._env,
            self._agent,
            self.batch,
            seed=seed,
            purpose="act",
            mid_batch_reset=self.mid_batch_reset,
            state_interval=self.state_interval,
            compile=self._compile,
        )
        station.collector.start(
            max_decorrelation_steps=self.max_decorrelation_steps,
            first_env=self.batch.first_env,
            seed=derive_seed(seed, "decorrelation"),
        )
        return station

    def obtain(self) -> Samples:
        """Step all environments through the slot."""
        self._board.check_all_free()
        slot = self._train.next_slot
        self._board.advance(slot, "FILLING")
        env_samples = self._train.fill()
        self._board.advance(slot, "READY")
        self._trajectories += self._tracker.update(env_samples)
        return self._board.lease(slot)

    def release(self, samples: Samples) -> None:
        """Give the slot back."""
        self._board.free(samples)

    def pop_trajectories(self) -> list[TrajInfo]:
        """Games that ended since the last call."""
        ended, self._trajectories = self._trajectories, []
        return ended

    def evaluate(self, give_up: Callable[[], bool] = never) -> list[TrajInfo] | None:
        """Play ``evaluation.episodes_per_env`` episodes in each evaluation environment; see `Sampler.evaluate`."""
        station = self._evaluation_station()
        station.collector.start()
        collector = station.collector
        can_skip = collector.env.can_skip
        return play_episodes(self.evaluation, station.fill, collector.on_hold, can_skip, self._discount, give_up)

    def film(self, max_steps: int) -> Iterator[np.ndarray]:
        """Play one episode in the first evaluation environment; its frame before each of at most ``max_steps`` steps.

        The evaluation needs one row a slot (``EvalSpec(num_steps=1)``), its environment ``render_mode="rgb_array"``.
        """
        if self.evaluation.num_steps != 1:
            raise ValueError(f"evaluation.num_steps is {self.evaluation.num_steps}; a film needs 1")
        station = self._evaluation_station()
        station.collector.start()
        env: Any = station.collector.env
        for _ in range(max_steps):
            yield env.render()
            samples = station.fill()
            if bool((samples.terminated[0, 0] | samples.truncated[0, 0]) & ~samples.first[1, 0]):
                return

    @property
    def render_fps(self) -> int:
        """Frames per second of `film`."""
        env: Any = self._evaluation_station().collector.env
        return int(env.render_fps)

    def _evaluation_station(self) -> Station:
        if self._eval is None:
            seed = derive_seed(self._seed, "evaluation")
            env = self.eval_env.make(self.evaluation.num_envs, self.evaluation.first_env, seed)
            check_spaces_agree(self._env.spaces, env.spaces)
            self._eval = Station(
                env,
                self._agent,
                self.eval_batch,
                seed=seed,
                purpose="evaluate",
                deterministic=self.evaluation.deterministic,
            )
        return self._eval

    def wait_shares(self) -> dict[str, float]:
        """Nothing: here is nobody to wait for."""
        return {}

    def get_state(self, *, exact: bool = True) -> dict[str, Any]:
        """Everything that the next slot depends on, as far as the environments can be saved.

        Without ``exact`` only what a resumed run must not repeat.
        """
        state: dict[str, Any] = {"generation": self._generation}
        if exact:
            state["train"], state["tracker"] = self._train.get_state(), self._tracker.get_state()
            state["eval"] = None if self._eval is None else self._eval.get_state()
            self._tell_problem()
        return state

    def _tell_problem(self) -> None:
        problems = [station.problem for station in (self._train, self._eval) if station is not None]
        problem = next(filter(None, problems), None)
        if problem is not None and not self._has_told_problem:
            self._has_told_problem = True
            _log.warning("a resumed run will begin new episodes: environments cannot be saved: %s", problem)

    def set_state(self, state: dict[str, Any]) -> bool:
        """Continue from `get_state`; False where environments could not be saved, and begin new episodes instead."""
        if state["generation"] != self._generation:
            self._start_generation(state["generation"])
        if state.get("eval") is not None:
            self._continue_evaluation(state["eval"])
        if "train" not in state or not self._train.set_state(state["train"]):
            self._start_generation(state["generation"] + 1)
            return False
        self._tracker.set_state(state["tracker"])
        return True

    def _continue_evaluation(self, state: dict[str, Any]) -> None:
        try:
            if self._evaluation_station().set_state(state):
                return
        except ValueError:  # another environment
            pass
        _log.info("evaluation has other environments than the checkpoint's: they start afresh")
        self._evaluation_station().collector.env.close()
        self._eval = None

    def close(self) -> None:
        """Close the environments."""
        if hasattr(self, "_env"):
            self._env.close()
            if self._eval is not None:
                self._eval.collector.env.close()


class Station:
    """One vector environment with its slot, and the actor that plays it."""

    next_slot = 0
    problem: str | None = None  # why environments cannot be saved, when their state was last wanted

    def __init__(
        self,
        env: VectorEnv,
        agent: Agent,
        batch: BatchSpec,
        *,
        seed: int,
        purpose: str,
        deterministic: bool = False,
        mid_batch_reset: bool = True,
        state_interval: int | None = None,
        compile: tuple[Compile, int | None] = ("off", None),
    ) -> None:
        interval = state_interval or batch.num_steps
        self.slots = allocate_slots(
            1,
            batch,
            env.spaces,
            env.info_example,
            agent_example(agent),
            state_interval=interval,
            shared=agent.device.type == "cuda",  # which can be page-locked
        )
        columns = slice(0, batch.num_envs)
        self.collector = Collector(env, SlotViews(self.slots, columns), mid_batch_reset=mid_batch_reset)
        self.actor = Actor(
            agent,
            self.slots,
            columns,
            first_env=batch.first_env,
            seed=seed,
            state_interval=interval,
            purpose=purpose,
            deterministic=deterministic,
            programs=act_programs(agent, self.slots, [batch.num_envs], agent.device, torch.get_num_threads(), *compile),
            capture=compile[0] != "off",
        )

    def fill(self) -> EnvSamples:
        """Collect one slot; its numpy arrays."""
        fill_slot(self.collector, self.actor, 0)
        return self.collector.views.slots[0].env

    def get_state(self) -> dict[str, Any]:
        """Environments (None where they cannot be saved), agent state and the row that begins the next slot."""
        return {
            "env": self._env_state(),
            "actor": self.actor.get_state(),
            "last_row": tree_map(np.array, plain(self._last_row())),
        }

    def _env_state(self) -> Any:
        env: Any = self.collector.env
        state = env.get_state() if isinstance(env, HasState) else None
        self.problem = env.state_problem() if state is None and hasattr(env, "state_problem") else None
        try:
            to_plain(state)
        except ValueError as error:  # it holds objects of its own classes, and loading must not run their code
            state, self.problem = None, str(error)
        return state

    def set_state(self, state: dict[str, Any]) -> bool:
        """Continue from `get_state`; whether the environments could be continued."""
        if state["env"] is None or len(leaves(state["last_row"])[0]) != self.collector.env.num_envs:
            return False
        self.collector.env.set_state(state["env"])  # type: ignore[attr-defined]
        self.actor.set_state(state["actor"])
        tree_map(lambda own, saved: own.__setitem__(..., saved), self._last_row(), state["last_row"])
        return True

    def _last_row(self) -> Tree:
        slot = self.collector.views.slots[0]
        keep = EnvSamples(slot.env.observation, None, slot.env.prev_reward, None, None, None, slot.env.first, None)
        return Samples(slot.agent._replace(action=None, agent_info=None, agent_state=None), keep, None)[
            self.actor.num_steps
        ]
