import time

import pytest
import torch

from rlsurreal.distributed.parameters import SharedParameters
from rlsurreal.distributed.processes import Launcher
from rlsurreal.distributed.zygote import send_to_master


def _tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.full((3, 5), value),
        "count": torch.full((), value, dtype=torch.float64),
        "flag": torch.tensor(value > 0),
        "steps": torch.full((2,), int(value)),
    }


def test_pull_gives_what_was_published_of_every_type():
    link = SharedParameters(_tensors(0))
    link.publish(_tensors(3), version=4)
    own = _tensors(0)
    assert link.pull(own, None)[0] == 4
    assert all(torch.equal(own[name], tensor) for name, tensor in _tensors(3).items())


def test_nothing_is_copied_when_nothing_is_new():
    link = SharedParameters(_tensors(0))
    link.publish(_tensors(3), version=4)
    own = _tensors(0)
    _, taken = link.pull(own, None)
    own["weight"].fill_(9)
    assert link.pull(own, taken) == (4, taken)
    assert torch.equal(own["weight"], _tensors(9)["weight"])


def test_publishing_under_the_same_version_is_new_all_the_same():
    link = SharedParameters(_tensors(0))
    own, taken = _tensors(0), None
    for value in (3, 5, 7):
        link.publish(_tensors(value), version=4)
        version, taken = link.pull(own, taken)
        assert version == 4 and torch.equal(own["weight"], _tensors(value)["weight"])


def _read(link: SharedParameters, seconds: float) -> None:
    own = {"weight": torch.zeros(200_000)}
    send_to_master("ready")
    versions, torn, end = [], 0, time.monotonic() + seconds
    version, taken = -1, None
    while time.monotonic() < end:
        version, taken = link.pull(own, taken)
        torn += not bool((own["weight"] == float(version)).all())
        versions.append(version)
    send_to_master((torn, versions == sorted(versions), len(set(versions))))


@pytest.mark.processes
def test_readers_in_other_processes_never_see_a_torn_publication():
    weight = torch.zeros(200_000)
    link = SharedParameters({"weight": weight})
    link.publish({"weight": weight}, 0)
    launcher = Launcher(["torch"])
    try:
        readers = [launcher.start(f"reader-{i}", _read, link, 2.0) for i in range(2)]
        for reader in readers:
            reader.receive(60)
        end, version = time.monotonic() + 1.5, 0
        while time.monotonic() < end:
            version += 1
            link.publish({"weight": weight.fill_(version)}, version)
        for reader in readers:
            torn, in_order, num_versions = reader.receive(60)
            assert torn == 0 and in_order and num_versions > 10
    finally:
        launcher.close()
