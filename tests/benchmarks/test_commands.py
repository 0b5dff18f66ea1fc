from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest

from benchmarks import everything, options, ours, peers, replay, sampling
from benchmarks.__main__ import main, make_parser
from benchmarks.contests import Plan, entries_of
from benchmarks.peers import PEERS, null_env
from benchmarks.sampling_ours import SamplerRate
from benchmarks.tasks import RETURN, SAMPLING_PEERS, TRAIN, UPDATE

SCRIPTS = sorted(Path(peers.__file__).parent.glob("[!_]*.py"))


COMMANDS = [
    "sampling",
    "update",
    "train",
    "learning",
    "replay",
    "serving",
    "memory",
    "ranks",
    "scaling",
    "all",
    "compare",
    "draw",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "default" in capsys.readouterr().out


def test_unknown_names_are_errors_that_name_the_known_ones():
    with pytest.raises(SystemExit, match=r"there is no W9; choose from .*W1c"):
        main(["train", "--workloads", "W9", "--peers", ""])
    with pytest.raises(SystemExit, match=r"there is no rllib; choose from sb3,"):
        main(["train", "--peers", "rllib"])


def test_a_peer_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="'sbx' is not installed.*--install-peers"):
        peers.choose("sbx", install=False)
    assert peers.choose(None, install=False) == []


def test_another_version_counts_as_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = peers.folder_of("sb3")
    folder.mkdir(parents=True)
    (folder / "installed").write_text("stable-baselines3==1.0")
    assert not peers.is_installed("sb3")


def test_peers_import_nothing_of_ours():
    for script in SCRIPTS:
        tree = ast.parse(script.read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] in ("rlsurreal", "benchmarks")], script.name


def test_every_peer_of_a_task_is_known_and_pinned():
    named = {
        name.split(", ")[0] for task in [*TRAIN.values(), *UPDATE.values(), *RETURN.values()] for name in task.peers
    }
    named |= {peer for table in SAMPLING_PEERS.values() for peer, _ in table}
    named |= {peer for task in replay.TASKS.values() for peer in task.peers}
    assert named == set(PEERS)
    assert all(peer.script in SCRIPTS for peer in PEERS.values())
    assert all(any("==" in requirement for requirement in peer.requirements) for peer in PEERS.values())


def test_everybody_gets_the_same_work(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.contests.python_of", lambda name, install: Path(name))
    plan = Plan(1, 1.0, "cpu", list(PEERS), tmp_path)
    for task in TRAIN.values():
        entries = [entry for group in entries_of(task, "train", plan) for entry in group.values()]
        all_settings = [json.loads(entry.command[-1]) for entry in entries]
        for settings in all_settings:
            same = {key: settings[key] for key in task.settings if key != "num_threads"}
            assert same == {key: task.settings[key] for key in same}


def test_peers_without_an_accelerator_stay_away_from_it(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.contests.python_of", lambda name, install: Path(name))
    _, on_cuda = entries_of(TRAIN["W1"], "train", Plan(1, 1.0, "cuda:0", list(PEERS), tmp_path))
    assert "sbx" not in on_cuda and "sb3" in on_cuda


def test_all_measures_everything_and_quick_a_part(tmp_path):
    plan = Plan(1, 1.0, "cpu", [], tmp_path)
    quick = ["memory", "update", "train", "sampling"]
    assert list(everything.parts(plan, quick=True)) == quick
    assert list(everything.parts(plan, quick=False)) == [*quick, "replay", "ranks", "serving", "time to return"]


def test_parts_of_one_table_are_measured_in_one_way(tmp_path):
    everything.check_same_settings(Plan(5, 20.0, "cpu", [], tmp_path))
    everything.check_same_settings(Plan(5, 20.0, "cpu", [], tmp_path))
    with pytest.raises(SystemExit, match="measured with"):
        everything.check_same_settings(Plan(5, 2.0, "cpu", [], tmp_path))


def test_quick_is_shorter_and_turns_can_be_set():
    arguments = make_parser().parse_args(["train", "--quick", "--peers", "", "--rounds", "7"])
    plan = options.make_plan(arguments)
    assert plan.rounds == 7 and plan.seconds < 20
    with pytest.raises(SystemExit, match="--rounds must be at least 1"):
        options.make_plan(make_parser().parse_args(["train", "--rounds", "0", "--peers", ""]))


SMALL = {
    **RETURN["W8-CartPole"].settings,
    "num_envs": 4,
    "num_steps": 16,
    "num_epochs": 2,
    "minibatch_size": 16,
    "sampler": "serial",
    "device": "cpu",
    "compile": "off",
}


@pytest.mark.parametrize(("what", "per_iteration"), [("train", 4 * 16), ("update", 2 * 4)])
def test_ours_makes_the_steps_that_it_reports(what, per_iteration, monkeypatch):
    totals = []

    class ThreeTicks:
        def __init__(self, version):
            pass

        def tick(self, total):
            totals.append(total)
            if len(totals) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(ours, "Gate", ThreeTicks)
    with pytest.raises(KeyboardInterrupt):
        {"train": ours.train, "update": ours.update}[what](SMALL)
    if what == "update":
        assert totals == [0, per_iteration, 2 * per_iteration]
    else:  # reset rows are no steps
        assert totals[0] == 0 and per_iteration * 1.5 < totals[2] <= per_iteration * 2


@pytest.mark.parametrize(("target", "reached"), [(5.0, True), (10_000.0, False)])
def test_time_to_return_ends_at_the_target_or_the_budget(target, reached, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    ours.learn({**SMALL, "target": target, "num_games": 3, "total_env_steps": 600})
    result = json.loads(out.getvalue())
    assert result["reached"] is reached
    assert (result["env_steps"] >= 600) is not reached


def test_the_null_environment_can_be_sampled():
    workload = sampling._WORKLOADS["Null"]("cpu")
    assert workload.env_id == null_env.ID in SAMPLING_PEERS
    name, kind, make = workload.samplers[0]
    contestant = make()
    try:
        assert isinstance(contestant, SamplerRate) and kind == "python"
        assert contestant.rate(0.05) > 0
    finally:
        contestant.close()
