"""Sweep files say which runs there are; slots divide machines that are made up."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlsurreal.utils import affinity
from rlsurreal.utils.schedules import Linear

ROOT = Path(__file__).parents[2]
if str(ROOT / "launchers") not in sys.path:
    sys.path.append(str(ROOT / "launchers"))

from sweep_queue.slots import Slot, Slots, make_slots  # noqa: E402
from sweep_queue.sweep import Sweep, load_sweep  # noqa: E402

# ---------------------------------------------------------------- sweeps


def test_every_variant_with_every_setting_of_the_grid_and_every_seed():
    sweep = Sweep(
        recipe="ppo_mujoco",
        settings={"total_env_steps": 1000, "env_id": "Hopper-v5", "compile": "off"},
        variants={"clip": {}, "kl": {"algo.objective": "kl_penalty", "compile": "on"}},
        grid={"algo.learning_rate": [1e-4, 3e-4], "agent.model.kwargs.hidden_sizes": [(64, 64), (256,)]},
        seeds=[3, 5],
    )
    plans = sweep.plans()
    assert len(plans) == 16 == len({plan.name for plan in plans})
    assert [plan.name.rpartition("-")[2] for plan in plans] == ["seed=3"] * 8 + ["seed=5"] * 8, "seed by seed"
    last = plans[-1]
    assert (last.name, last.label) == (
        "kl-learning_rate=0.0003-hidden_sizes=256-seed=5",
        "kl-learning_rate=0.0003-hidden_sizes=256",
    )
    assert last.settings == {"variant": "kl", "learning_rate": "0.0003", "hidden_sizes": "256"}
    assert last.recipe == "ppo_mujoco"
    assert set(last.words) == {
        "total_env_steps=1000",
        "env_id=Hopper-v5",
        "compile=on",
        "algo.objective=kl_penalty",
        "algo.learning_rate=0.0003",
        "agent.model.kwargs.hidden_sizes=(256,)",
        "seed=5",
        f"name={last.label}",
    }


def test_the_recipe_may_vary_and_nothing_need_to():
    compared = Sweep(recipe="debug", grid={"recipe": ["ppo_mujoco", "sac_mujoco"]}).plans()
    assert [(plan.name, plan.recipe) for plan in compared] == [
        ("recipe=ppo_mujoco-seed=0", "ppo_mujoco"),
        ("recipe=sac_mujoco-seed=0", "sac_mujoco"),
    ]
    (plan,) = Sweep(recipe="debug", name="alone").plans()
    assert (plan.name, plan.label, plan.settings, plan.words) == ("seed=0", "alone", {}, ("seed=0", "name=alone"))


def test_names_are_as_short_as_they_can_be():
    grid: dict[str, Any] = {"algo.replay.capacity": [1], "algo.capacity": [2], "algo.std": [0.30000000000000004]}
    (plan,) = Sweep(recipe="r", grid=grid).plans()
    assert plan.name == "replay.capacity=1-algo.capacity=2-std=0.3-seed=0"
    assert "algo.std=0.30000000000000004" in plan.words


def test_values_are_what_a_command_line_says():
    values = [True, None, 1e-05, "a=b", [1, "x"], {"k": (1, 2)}, Path("/data"), Linear]
    words = [plan.words[0] for plan in Sweep(recipe="r", grid={"key": values}).plans()]
    assert [word.removeprefix("key=") for word in words] == [
        *("True", "None", "1e-05", "a=b", "[1, 'x']", "{'k': (1, 2)}", "/data"),
        "rlsurreal.utils.schedules:Linear",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"grid": {"a": "text"}}, r"grid\['a'\] is 'text'; give a list"),
        ({"grid": {"a": []}}, "at least one value"),
        ({"seeds": []}, r"seeds is \[\]; give a list"),
        ({"seeds": [0.5]}, r"seeds is \[0.5\]"),
        ({"seeds": [1, 1]}, "2 runs would be named seed=1"),
        ({"grid": {"a": [1, 1.0]}}, "2 runs would be named a=1-seed=0"),
        ({"grid": {"seed": [1]}}, "grid of the sweep has 'seed': list seeds in seeds"),
        ({"settings": {"name": "x"}}, "settings of the sweep has 'name': runs are named after"),
        ({"variants": {"v": {"root": "x"}}}, "v of the sweep has 'root': use --root"),
        ({"variants": {"v": {"a": 1}}, "grid": {"a": [1]}}, "variant 'v' and the grid both have a;"),
        ({"variants": {"a/b": {}}}, "'a/b' names a sweep or variant"),
        ({"name": ".."}, "'..' names a sweep or variant"),
        ({"grid": {"a": ["x" * 300]}}, "longer than 200 letters; use named variants"),
        ({"settings": {"a": Linear(1.0, 0.0)}}, "a: .*each setting of a component by its own dotted key"),
        ({"settings": {"a": [Linear]}}, "a is .*Linear.*; use numbers"),
    ],
)
def test_wrong_sweeps_say_what_is_wrong(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Sweep(recipe="r", **arguments).plans()


def test_sweep_files(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(ValueError, match="there is no sweep file"):
        load_sweep(path)
    path.write_text("SWEEP = {'recipe': 'debug'}")
    with pytest.raises(ValueError, match="does not define SWEEP = Sweep"):
        load_sweep(path)
    path.write_text("from sweep_queue import Sweep\nSWEEP = Sweep(recipe='debug')")
    assert load_sweep(path).name == "mine"
    path.write_text("from sweep_queue import Sweep\nSWEEP = Sweep(recipe='debug', name='other')")
    assert load_sweep(path).name == "other"


@pytest.mark.parametrize("path", sorted((ROOT / "examples/sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_every_run_of_the_examples_can_be_built(path):
    from train import build

    plans = load_sweep(path).plans()
    trainers = [build(plan.recipe, list(plan.words)) for plan in plans]
    assert len(trainers) >= 4 and [trainer.name for trainer in trainers] == [plan.label for plan in plans]


# ---------------------------------------------------------------- slots


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """8 CPUs, 4 cores in 2 sockets; hyperthread c belongs to the core of c + 4; 4 GPUs, two on each socket."""
    monkeypatch.setattr(affinity, "_place", lambda cpu: (cpu % 4 // 2, cpu % 4, cpu))
    monkeypatch.setattr(affinity, "usable_cpus", lambda: tuple(range(8)))
    monkeypatch.setattr(affinity, "cpu_quota", lambda: None)
    monkeypatch.setattr(affinity, "CAN_PIN", True)
    monkeypatch.setattr(affinity, "usable_gpus", lambda: ("0", "1", "2", "3"))
    monkeypatch.setattr(affinity, "socket_of_gpu", lambda gpu: int(gpu) // 2)
    return monkeypatch


def slots_of(num_runs: int = 100, uses_gpus: bool = False, **wanted: Any) -> list[tuple[Sequence[int], Sequence[str]]]:
    return [(slot.cpus, slot.gpus) for slot in make_slots(Slots(**wanted), num_runs, uses_gpus=uses_gpus)]


def test_without_gpus_each_core_is_a_slot_unless_there_are_fewer_runs(machine):
    assert slots_of() == [((0, 4), ()), ((1, 5), ()), ((2, 6), ()), ((3, 7), ())]
    assert slots_of(num_runs=2) == [((0, 1, 4, 5), ()), ((2, 3, 6, 7), ())]
    assert slots_of(num_runs=1) == [(tuple(range(8)), ())]


def test_the_number_and_the_size_of_slots(machine):
    assert slots_of(num_slots=2) == [((0, 1, 4, 5), ()), ((2, 3, 6, 7), ())]
    assert slots_of(num_slots=8) == [((cpu,), ()) for cpu in (0, 4, 1, 5, 2, 6, 3, 7)]
    assert slots_of(cpus_per_run=3) == [((0, 1, 4), ()), ((2, 5, 6), ())]
    assert slots_of(cpus_per_run=2, num_slots=1) == [((0, 4), ())]
    assert slots_of(num_runs=1, num_slots=2) == slots_of(num_slots=2), "what is asked for is made"


def test_without_hyperthreads(machine):
    assert slots_of(use_hyperthreads=False) == [((cpu,), ()) for cpu in range(4)]
    assert slots_of(use_hyperthreads=False, num_slots=2) == [((0, 1), ()), ((2, 3), ())]


def test_within_sockets(machine):
    assert slots_of(num_slots=3) == [((0, 4), ()), ((1, 2, 5), ()), ((3, 6, 7), ())], "one spans two sockets"
    thirds = slots_of(num_slots=3, within_socket=True)
    assert sorted(thirds) == [((0, 4), ()), ((1, 5), ()), ((2, 3, 6, 7), ())]
    assert slots_of(cpus_per_run=3, within_socket=True) == [((0, 1, 4), ()), ((2, 3, 6), ())]


def test_gpus(machine):
    def on(**settings: Any) -> list[tuple[Sequence[int], Sequence[str]]]:
        return slots_of(uses_gpus=True, **settings)

    assert on() == [((0, 4), ("0",)), ((1, 5), ("1",)), ((2, 6), ("2",)), ((3, 7), ("3",))]
    assert on(gpus_per_run=2) == [((0, 1, 4, 5), ("0", "1")), ((2, 3, 6, 7), ("2", "3"))]
    assert [gpus for _, gpus in on(gpus_per_run=3)] == [("0", "1", "2")]
    twice = on(runs_per_gpu=2)
    assert [gpus for _, gpus in twice] == [("0",), ("1",), ("2",), ("3",)] * 2
    assert sorted(cpu for cpus, _ in twice for cpu in cpus) == list(range(8))
    assert [gpus for _, gpus in on(num_slots=2)] == [("0",), ("1",)]
    assert on(num_runs=1) == [(tuple(range(8)), ("0",))]
    assert len(on(runs_per_gpu=2, cpus_per_run=4)) == 2, "where CPUs are few, GPUs idle"


def test_gpus_with_the_cpus_of_their_socket(machine):
    near = dict(uses_gpus=True, within_socket=True)
    machine.setattr(affinity, "socket_of_gpu", lambda gpu: int(gpu) % 2)
    assert slots_of(**near) == [((0, 4), ("0",)), ((2, 6), ("1",)), ((1, 5), ("2",)), ((3, 7), ("3",))]
    machine.setattr(affinity, "socket_of_gpu", lambda gpu: None)
    assert slots_of(**near) == [((0, 4), ("0",)), ((1, 5), ("1",)), ((2, 6), ("2",)), ((3, 7), ("3",))]
    machine.setattr(affinity, "socket_of_gpu", lambda gpu: 1)
    assert {cpu for cpus, _ in slots_of(**near) for cpu in cpus} == {2, 3, 6, 7}


@pytest.mark.parametrize("within_socket", [False, True])
@pytest.mark.parametrize("use_hyperthreads", [False, True])
@pytest.mark.parametrize("uses_gpus", [False, True])
def test_slots_are_apart(machine, within_socket, use_hyperthreads, uses_gpus):
    for num_runs, size, per_gpu in itertools.product((1, 2, 3, 7, 50), (None, 1, 2), (1, 2, 3)):
        slots = make_slots(
            Slots(
                cpus_per_run=size,
                runs_per_gpu=per_gpu,
                within_socket=within_socket,
                use_hyperthreads=use_hyperthreads,
            ),
            num_runs,
            uses_gpus=uses_gpus,
        )
        used = [cpu for slot in slots for cpu in slot.cpus]
        assert 1 <= len(slots) <= num_runs and len(used) == len(set(used)) and all(slot.cpus for slot in slots)
        assert size is None or {len(slot.cpus) for slot in slots} == {size}
        assert [slot.num_threads for slot in slots] == [len(slot.cpus) for slot in slots]
        if within_socket:
            assert all(len({cpu % 4 // 2 for cpu in slot.cpus}) == 1 for slot in slots)
        if not use_hyperthreads:
            assert set(used) <= set(range(4))
        if uses_gpus:
            assert all(sum(slot.gpus == other.gpus for other in slots) <= per_gpu for slot in slots)


def test_under_a_quota_all_cpus_are_divided_and_time_is_shared(machine):
    machine.setattr(affinity, "cpu_quota", lambda: 4.0)
    slots = make_slots(Slots(), 100, uses_gpus=False)
    assert [slot.num_threads for slot in slots] == [1] * 4 and [len(slot.cpus) for slot in slots] == [2] * 4
    two = make_slots(Slots(num_slots=2), 100, uses_gpus=False)
    assert [slot.num_threads for slot in two] == [2, 2] and [len(slot.cpus) for slot in two] == [4, 4]
    assert len(make_slots(Slots(cpus_per_run=2), 100, uses_gpus=False)) == 2


def test_where_processes_cannot_be_pinned(machine):
    machine.setattr(affinity, "CAN_PIN", False)
    assert [str(slot) for slot in make_slots(Slots(num_slots=2), 9, uses_gpus=False)] == ["any 4 CPUs"] * 2


def test_what_a_run_is_told(machine):
    (slot,) = make_slots(Slots(gpus_per_run=2, cpus_per_run=6), 9, uses_gpus=True)
    assert slot == Slot(0, (0, 1, 2, 4, 5, 6), ("0", "1"), 6)
    assert str(slot) == "CPU 0-2,4-6, GPU 0,1"
    told = {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "3", "RLSURREAL_NUM_CPUS": str(slot.num_threads)}
    assert slot.environment() == told
    assert make_slots(Slots(), 4, uses_gpus=False)[0].environment()["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("wanted", "uses_gpus", "complaint"),
    [
        (dict(num_slots=9), False, "9 slots are asked for; 8 CPUs have room for 8"),
        (dict(num_slots=3, cpus_per_run=4), False, "3 slots of 4 CPUs are asked for; 8 CPUs have room for 2"),
        (dict(cpus_per_run=9), False, "have room for 0"),
        (dict(cpus_per_run=5, within_socket=True), False, "have room for 0"),
        (dict(num_slots=5), True, "5 slots are asked for; 8 CPUs and 4 GPUs have room for 4"),
        (dict(gpus_per_run=5), True, "gpus_per_run is 5; this process may use 4 GPUs"),
        (dict(gpus_per_run=1), False, "add device='cuda'"),
        (dict(gpus_per_run=0), True, "make it 1, or remove device"),
        (dict(num_slots=0), False, r"Slots\.num_slots is 0; it must be at least 1"),
        (dict(runs_per_gpu=0), False, r"Slots\.runs_per_gpu is 0"),
    ],
)
def test_wrong_slots_say_what_is_wrong(machine, wanted, uses_gpus, complaint):
    with pytest.raises(ValueError, match=complaint):
        slots_of(uses_gpus=uses_gpus, num_runs=100, **wanted)
