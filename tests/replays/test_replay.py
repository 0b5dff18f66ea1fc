"""The whole replay, fed by a sampler, against a reference that keeps every row in lists for ever."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.envs import GymnasiumEnv
from rlsurreal.replays import FullStorage, NStep, Prioritized, Replay, Uniform, Windows
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec, Samples
from rlsurreal.testing.agents import TapeAgent
from rlsurreal.testing.envs import CountingEnv
from rlsurreal.utils.namedarraytuple import leaves, named_leaves

DISCOUNT = 0.9


class Reference:
    """Every row of every environment, in lists."""

    def __init__(self, num_envs: int) -> None:
        self.columns: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
        self.states: dict[tuple[int, int], np.ndarray] = {}

    @property
    def newest(self) -> int:
        return len(self.columns[0]) - 1

    def append(self, samples: Samples, interval: int) -> None:
        num_rows = len(samples.env.reward)
        start = max(0, self.newest)
        for b, column in enumerate(self.columns):
            del column[start:]  # the last row comes again, with its action
            for t in range(num_rows):
                column.append(_row(samples, t, b))
            for k in range((num_rows - 1) // interval + 1):
                if samples.agent.agent_state is not None:
                    self.states[start + k * interval, b] = np.array(leaves(samples.agent.agent_state[k, b]))

    def is_valid(self, b: int, row: int) -> bool:
        return row < self.newest and bool(self.columns[b][row]["env.valid"])

    def n_step(self, b: int, start: int, num_steps: int) -> tuple[float, float, int]:
        total, k, column = 0.0, 0, self.columns[b]
        while True:
            row = column[start + k]
            total += DISCOUNT**k * float(row["env.reward"])
            k += 1
            if row["env.terminated"]:
                return total, 0.0, start + k
            if row["env.truncated"] or k == num_steps or not column[start + k]["env.valid"]:
                return total, DISCOUNT**k, start + k


def _row(samples: Samples, t: int, b: int) -> dict[str, Any]:
    parts = {"agent": samples.agent._replace(agent_state=None), "env": samples.env}
    return {
        f"{part}.{name}": leaf[t, b].numpy().copy() for part, tree in parts.items() for name, leaf in named_leaves(tree)
    }


def make_sampler(num_steps: int, num_envs: int, interval: int | None = None, **env: Any) -> SerialSampler:
    settings = {"lengths": [3, 7, 1, 12], "end": "alternate", "lives": 2, **env}
    sampler = SerialSampler(
        env=GymnasiumEnv(factory=CountingEnv, kwargs=settings, info_fields=CountingEnv.info_fields),
        batch=BatchSpec(num_steps, num_envs),
        state_interval=interval,
    )
    agent = TapeAgent()
    agent.initialize(sampler.connect(seed=1), seed=2)
    sampler.initialize(agent, discount=DISCOUNT)
    return sampler


def make_replay(num_steps: int, num_envs: int, num_rows: int, **settings: Any) -> Replay:
    parts = copy.deepcopy(settings)  # selectors and storages belong to one replay
    replay = Replay(capacity=num_rows * num_envs + num_envs - 1, **parts)
    batch = BatchSpec(num_steps, num_envs)
    replay.initialize(batch, seed=5, discount=DISCOUNT, device=torch.device("cpu"), keep_agent_info=True)
    return replay


SELECTORS = {
    "uniform": Uniform,
    "prioritized": Prioritized,
    "unique": lambda: Prioritized(unique=True, initial_priority=2.0),
}


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(("num_steps", "num_envs", "num_rows"), [(5, 3, 27), (1, 2, 12), (8, 1, 37), (16, 4, 33)])
@pytest.mark.parametrize("n", [1, 3])
def test_transitions_of_a_sampler(selector: str, num_steps: int, num_envs: int, num_rows: int, n: int) -> None:
    sampler = make_sampler(num_steps, num_envs)
    replay = make_replay(num_steps, num_envs, num_rows, selector=SELECTORS[selector](), extractor=NStep(num_steps=n))
    reference = Reference(num_envs)
    ticket = None
    for _ in range(max(25, 6 * num_rows // num_steps)):
        samples = sampler.obtain()
        reference.append(samples, num_steps)
        replay.append(samples)
        sampler.release(samples)
        if ticket is not None:
            replay.update_priorities(ticket, np.full(len(ticket.starts), 3.0))  # some of them are gone by now
        if len(replay.starts.suitable_places()) < 6:
            continue
        batch, ticket = replay.sample(6)
        for j, (start, b) in enumerate(zip(ticket.starts.tolist(), ticket.envs.tolist())):
            assert reference.newest - num_rows < start <= reference.newest - n and reference.is_valid(b, start)
            row = reference.columns[b][start]
            total, discount, successor = reference.n_step(b, start, n)
            assert float(batch.reward[j]) == pytest.approx(total)
            assert float(batch.discount[j]) == pytest.approx(discount)
            after = reference.columns[b][successor]
            np.testing.assert_array_equal(batch.next_observation[j], after["env.observation"])
            parts = {"env.observation": batch.observation, "agent.action": batch.action}
            for name, value in parts.items():
                np.testing.assert_array_equal(value[j], row[name], err_msg=name)
        if isinstance(replay.selector, Prioritized):
            replay.selector.tree.check_valid()
    assert reference.newest > 3 * num_rows
    sampler.close()


@pytest.mark.parametrize(("num_steps", "interval", "num_rows"), [(6, 3, 29), (4, 4, 26), (6, 2, 50)])
def test_sequences_of_a_sampler(num_steps: int, interval: int, num_rows: int) -> None:
    num_envs, windows = 3, Windows(burn_in=2, num_steps=5, num_ahead=2, interval=interval)
    sampler = make_sampler(num_steps, num_envs, interval)
    replay = make_replay(num_steps, num_envs, num_rows, extractor=windows)
    reference = Reference(num_envs)
    for i in range(50):
        samples = sampler.obtain()
        reference.append(samples, interval)
        replay.append(samples)
        sampler.release(samples)
        if i < 6:
            continue
        batch, ticket = replay.sample(8)
        for j, (start, b) in enumerate(zip((ticket.starts * interval).tolist(), ticket.envs.tolist())):
            assert reference.newest - num_rows < start <= reference.newest - 9
            np.testing.assert_array_equal(np.array(leaves(batch.state[j])), reference.states[start, b])
            for t in range(9):
                row = reference.columns[b][start + t]
                for name, value in named_leaves(batch._replace(state=None, weight=None)):
                    where = next(
                        f"{part}.{name}" for part in ("env", "agent", "agent.agent_info") if f"{part}.{name}" in row
                    )
                    np.testing.assert_array_equal(value[t, j], row[where], err_msg=name)  # as the agent saw it
    sampler.close()


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(selector=Prioritized(alpha=0.7), extractor=NStep(num_steps=3)),
        dict(selector=Prioritized(), extractor=Windows(burn_in=1, num_steps=4, num_ahead=1, interval=5)),
    ],
    ids=["uniform", "prioritized", "sequences"],
)
@pytest.mark.parametrize("num_slots", [0, 1, 3, 17])
def test_restored_replay_draws_the_same(settings: dict[str, Any], num_slots: int) -> None:
    sampler = make_sampler(5, 2)
    one, other = (make_replay(5, 2, 33, **settings) for _ in range(2))
    for _ in range(num_slots):
        samples = sampler.obtain()
        one.append(samples)
        sampler.release(samples)
        if len(one.starts.suitable_places()):
            _, ticket = one.sample(3)
            one.update_priorities(ticket, np.array([0.5, 4.0, 2.0]))
    state = pickle.loads(pickle.dumps(one.state_dict()))
    other.load_state_dict(state)
    if num_slots:  # saved again before the first slot comes
        again = other.state_dict()
        other = make_replay(5, 2, 33, **settings)
        other.load_state_dict(again)
    for _ in range(12):
        samples = sampler.obtain()
        one.append(samples)
        other.append(samples)
        sampler.release(samples)
        if not len(one.starts.suitable_places()):
            continue
        (ours, ticket), (theirs, same) = one.sample(7), other.sample(7)
        for (name, a), (_, b) in zip(named_leaves(ours), named_leaves(theirs), strict=True):
            assert torch.equal(a, b), name
        for replay, drawn in ((one, ticket), (other, same)):
            replay.update_priorities(drawn, np.linspace(0.1, 3, 7))
    sampler.close()


@pytest.mark.parametrize("num_slots", [1, 9])
@pytest.mark.parametrize(
    "extractor", [NStep(), NStep(num_steps=3), Windows(burn_in=1, num_steps=4, num_ahead=1, interval=5)]
)
def test_environments_that_begin_anew_after_a_restore_leave_a_gap(num_slots: int, extractor: Any) -> None:
    """The last row's successor is the true one still, and no item goes over the gap as if there were none."""
    sampler = make_sampler(5, 2, lengths=1000, lives=1)  # no episode ends by itself
    before, replay = make_replay(5, 2, 33, extractor=extractor), make_replay(5, 2, 33, extractor=extractor)
    for _ in range(num_slots):
        samples = sampler.obtain()
        before.append(samples)
        sampler.release(samples)
    sampler.close()
    replay.load_state_dict(before.state_dict())
    newest = before.ring.newest
    anew = make_sampler(5, 2, lengths=1000, lives=1)
    for _ in range(3):
        samples = anew.obtain()
        replay.append(samples)
        anew.release(samples)
    anew.close()
    gap = replay.ring.newest - newest - 15
    assert gap == extractor.stride
    rows = np.arange(max(0, newest - 6), newest + 10)[:, None] + np.zeros(2, int)
    valid = replay.timeline.is_valid(rows, np.arange(2))
    assert (valid == ((rows < newest) | (rows >= newest + gap))).all()
    steps = replay.storage.observation(replay.ring.flat(rows, np.arange(2)))[..., 2].numpy()
    kept = rows <= newest
    assert (steps[kept] == rows[kept]).all()
    after = rows >= newest + gap
    assert (steps[after] == (rows - newest - gap)[after]).all()
    for _ in range(30):
        batch, ticket = replay.sample(8)
        if isinstance(extractor, NStep):
            ahead = (batch.next_observation - batch.observation)[:, 2]
            left = newest - torch.from_numpy(ticket.starts)
            expected = torch.where(left > 0, left.clamp(max=extractor.num_steps), extractor.num_steps)
            assert torch.equal(ahead, expected.float())
        else:
            goes_on = batch.valid[:-1] & ~batch.first[1:]
            jump = (batch.observation[1:] - batch.observation[:-1])[..., 2]
            assert (jump[goes_on & batch.valid[1:]] == 1).all()


def test_no_gap_where_environments_go_on() -> None:
    sampler = make_sampler(5, 2)
    one, other = make_replay(5, 2, 33), make_replay(5, 2, 33)
    for replay in (one, other):
        samples = sampler.obtain()
        one.append(samples)
        sampler.release(samples)
        if replay is one:
            other.load_state_dict(one.state_dict())
        else:
            other.append(samples)
    assert one.ring.newest == other.ring.newest == 10
    sampler.close()


@pytest.mark.parametrize(
    ("num_steps", "extractor"),
    [(8, NStep()), (1, NStep(num_steps=5)), (6, Windows(burn_in=2, num_steps=5, num_ahead=2, interval=3))],
)
def test_smallest_capacity_works_and_a_smaller_one_names_the_fix(num_steps: int, extractor: Any) -> None:
    batch = BatchSpec(num_steps, 2)
    device = torch.device("cpu")
    settings: dict[str, Any] = dict(seed=0, discount=0.9, device=device)
    with pytest.raises(ValueError, match=r"Replay.capacity is 8, .* use capacity=\d+ or more") as error:
        Replay(capacity=8, extractor=extractor).initialize(batch, **settings)
    least = int(str(error.value).partition("use capacity=")[2].split()[0])
    with pytest.raises(ValueError, match=f"use capacity={least} or more"):
        Replay(capacity=least - 1, extractor=extractor).initialize(batch, **settings)
    replay = Replay(capacity=least, extractor=extractor)
    replay.initialize(batch, **settings)
    sampler = make_sampler(num_steps, 2, 3 if isinstance(extractor, Windows) else None, lengths=1000, lives=1)
    for i in range(60):
        samples = sampler.obtain()
        replay.append(samples)
        sampler.release(samples)
        if i * num_steps > 15:
            observation = replay.sample(4)[0].observation
            assert (observation[..., 2] > replay.ring.newest - replay.ring.num_rows).all()
    sampler.close()


def test_mistakes_name_their_fix() -> None:
    with pytest.raises(ValueError, match="Replay.capacity"):
        Replay(capacity=0)
    with pytest.raises(ValueError, match="does not divide batch.num_steps=5"):
        make_replay(5, 2, 50, extractor=Windows(burn_in=0, num_steps=2, num_ahead=1, interval=2))
    replay = make_replay(5, 2, 50, selector=Prioritized())
    with pytest.raises(ValueError, match="min_steps"):
        replay.sample(1)
    sampler = make_sampler(5, 2)
    with pytest.raises(ValueError, match=r"priority returned shape \(4,\) for .* items"):
        replay.append(sampler.obtain(), lambda read: np.ones(4))
    sampler.close()
    with pytest.raises(ValueError, match=r"saved replay has {'rows': 50}, this one {'rows': 52}.*save_replay=False"):
        make_replay(5, 2, 52, selector=Prioritized()).load_state_dict(replay.state_dict())
    with pytest.raises(ValueError, match="saved replay has {'selector': 'Prioritized', .*this one .*'Uniform'"):
        make_replay(5, 2, 50).load_state_dict(replay.state_dict())
    with pytest.raises(ValueError, match="saved replay has {'alpha': 0.6}, this one {'alpha': 0.7}"):
        make_replay(5, 2, 50, selector=Prioritized(alpha=0.7)).load_state_dict(replay.state_dict())
    shorter, longer = (Windows(burn_in=0, num_steps=n, num_ahead=1, interval=5) for n in (4, 9))
    with pytest.raises(ValueError, match="saved replay has {'rows of a sequence': 5}, this one .*: 10}"):
        make_replay(5, 2, 50, extractor=longer).load_state_dict(make_replay(5, 2, 50, extractor=shorter).state_dict())


def test_the_first_sequences_may_begin_in_the_middle_of_an_episode() -> None:
    sampler = make_sampler(5, 2, lengths=1000, lives=1)
    replay = make_replay(5, 2, 50, extractor=Windows(burn_in=0, num_steps=4, num_ahead=1, interval=5))
    sampler.release(sampler.obtain())  # which the replay has not seen, as after a resume without it
    samples = sampler.obtain()
    replay.append(samples)
    env, agent = samples.env, samples.agent
    assert not env.first[0].any() and env.prev_reward[0].all() and agent.prev_action[0].any()
    batch, ticket = replay.sample(6)
    assert torch.equal(batch.prev_reward, env.prev_reward[:5, ticket.envs])
    assert torch.equal(batch.prev_action, agent.prev_action[:5, ticket.envs])
    sampler.close()


@pytest.mark.parametrize(
    "extractor", [NStep(num_steps=2), Windows(burn_in=1, num_steps=3, num_ahead=1, interval=5)], ids=["2", "windows"]
)
def test_first_priorities_are_made_of_the_rows_of_their_items(extractor: Any) -> None:
    sampler = make_sampler(5, 2)
    replay = make_replay(5, 2, 23, selector=Prioritized(alpha=1.0), extractor=extractor)
    reference = Reference(2)

    def worth(rewards: Any, valid: Any, steps: Any) -> Any:
        return (rewards * valid).sum(0) + steps[0] / 100 + 0.001

    def priority(read: Any) -> np.ndarray:
        found: np.ndarray = worth(read("reward"), read("valid"), read("agent_info").steps).numpy()
        return found

    for _ in range(15):
        samples = sampler.obtain()
        reference.append(samples, 5)
        replay.append(samples, priority)
        sampler.release(samples)
        assert isinstance(replay.selector, Prioritized)
        places = replay.starts.suitable_places()
        for place, start, b in zip(places, *replay.starts.at(places)):
            first = start * extractor.stride
            rows = reference.columns[b][first : first + extractor.reach]
            names = ("env.reward", "env.valid", "agent.agent_info.steps")
            expected = worth(*(np.array([row[name] for row in rows]) for name in names))
            assert replay.selector.tree.leaves[place] == pytest.approx(expected, rel=1e-6)
        assert np.count_nonzero(replay.selector.tree.leaves) == len(places)
    sampler.close()


def test_rows_in_a_file_survive_with_the_replay(tmp_path: Any) -> None:
    sampler = make_sampler(5, 2)
    replay = make_replay(5, 2, 30, storage=FullStorage(file=str(tmp_path / "a")))
    other = make_replay(5, 2, 30, storage=FullStorage(file=str(tmp_path / "b")))
    samples = sampler.obtain()
    replay.append(samples)
    other.load_state_dict(replay.state_dict())
    sampler.release(samples)
    samples = sampler.obtain()
    for one in (replay, other):
        one.append(samples)
    for a, b in zip(leaves(replay.sample(9)[0]), leaves(other.sample(9)[0]), strict=True):
        assert torch.equal(a, b)
    sampler.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
@pytest.mark.parametrize(
    "extractor", [NStep(num_steps=3), Windows(burn_in=1, num_steps=4, num_ahead=1, interval=5)], ids=["3", "windows"]
)
def test_replay_on_a_gpu_draws_the_same(extractor: Any) -> None:
    sampler = make_sampler(5, 2)
    here, there = (make_replay(5, 2, 33, extractor=extractor, selector=Prioritized(), device=d) for d in (None, "cuda"))
    for _ in range(20):
        samples = sampler.obtain()
        for replay in (here, there):
            replay.append(samples)
        sampler.release(samples)
        if not len(here.starts.suitable_places()):
            continue
        (ours, ticket), (theirs, _) = here.sample(9), there.sample(9)
        for (name, a), (_, b) in zip(named_leaves(ours), named_leaves(theirs), strict=True):
            torch.testing.assert_close(a, b.cpu(), msg=name)
        for replay in (here, there):
            replay.update_priorities(ticket, np.linspace(0.1, 3, 9))
    sampler.close()
