"""Two hosts, one rank each: over loopback, and as network namespaces with names and a link of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.runners.test_ranks import PPO, SCRIPT, checkpoint, num_rows, rows, wait_until
from tests.torchrun import agent, environment

pytestmark = pytest.mark.processes
CONF = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3"  # waits of the agents, in seconds
ADDRESSES = ("10.77.31.1", "10.77.31.2")


class Hosts:
    """Where commands are run: a prefix and an environment for each host."""

    def __init__(self, folder: Path, prefixes: list[list[str]], addresses: list[str], interfaces: list[str]) -> None:
        self.folder, self.addresses = folder, addresses
        self._prefixes, self._interfaces = prefixes, interfaces
        self._port = free_port()
        self._running: list[subprocess.Popen[bytes]] = []
        (folder / "script.py").write_text(SCRIPT)

    def start(self, host: int, *options: str, words: list[str]) -> subprocess.Popen[bytes]:
        """torchrun's agent on a host; what it and its rank say goes to ``host<i>.txt``."""
        own = ["--rdzv-endpoint", f"{self.addresses[0]}:{self._port}", "--local-addr", self.addresses[host]]
        own += ["--rdzv-conf", f"is_host={int(host == 0)},{CONF}"]
        script = [str(self.folder / "script.py"), "ppo_cartpole", str(self.folder / "run"), ""]
        command = [*self._prefixes[host], *agent(*own, *options, *script, *words)]
        env = environment(GLOO_SOCKET_IFNAME=self._interfaces[host])
        with open(self.folder / f"host{host}.txt", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        self._running.append(process)
        return process

    def said(self, host: int) -> str:
        return (self.folder / f"host{host}.txt").read_text()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """An agent and all that it started, at once."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            for member in [*root.children(recursive=True), root]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self._running:
            self.kill(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[list[list[str]], list[str]]]:
    """Two network namespaces joined by a virtual link; prefixes of commands, and interfaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"rlsurreal{os.getpid()}{end}" for end in "ab"]
    links = [f"rls{os.getpid() % 100000}{end}" for end in "ab"]
    try:
        try:
            ip("netns", "add", names[0])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
        ip("netns", "add", names[1])
        ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
        for name, link, address in zip(names, links, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        hosts = [
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$0" "$@"']
            for name, host in zip(names, ("first-host", "second-host"))
        ]
        yield hosts, links
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def hosts_of(kind: str, folder: Path) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        prefixes, links = stack.enter_context(namespaces()) if kind == "namespaces" else ([[], []], ["lo", "lo"])
        addresses = list(ADDRESSES) if kind == "namespaces" else ["127.0.0.1"] * 2
        hosts = Hosts(folder, prefixes, addresses, links)
        stack.callback(hosts.close)
        yield hosts


@pytest.mark.parametrize("kind", ["loopback", "namespaces"])
def test_a_run_goes_on_from_its_checkpoint_when_a_host_is_lost(kind, tmp_path):
    options = ["--nnodes", "1:2", "--max-restarts", "5"]
    words = [*PPO, "checkpoints.interval_steps=400", "total_env_steps=12000"]
    with hosts_of(kind, tmp_path) as hosts:
        first, second = (hosts.start(host, *options, words=words) for host in range(2))
        wait_until(lambda: num_rows(tmp_path / "run") > 5)
        assert "ranks" in (tmp_path / "run" / "environment.json").read_text()
        hosts.kill(second)
        assert first.wait(100) == 0, hosts.said(0)
    state = checkpoint(tmp_path / "run")
    assert state["counter"]["env_steps"] >= 12000 and len(state["ranks"]) == 1  # it began with two
    steps = [int(row["step"]) for row in rows(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] >= 12000  # one unbroken log
    assert '"ranks": 2' in (tmp_path / "run" / "environment.json").read_text()
    assert '"ranks": 1' in (tmp_path / "run" / "environment_resumed.json").read_text()


def test_both_sides_of_a_cut_link_say_so(tmp_path):
    words = [*PPO, "total_env_steps=10000000"]
    with hosts_of("namespaces", tmp_path) as hosts:
        agents = [hosts.start(host, "--nnodes", "2", "--max-restarts", "0", words=words) for host in range(2)]
        wait_until(lambda: num_rows(tmp_path / "run") > 5)
        ip("-n", hosts._prefixes[1][3], "link", "set", hosts._interfaces[1], "down")
        wait_until(lambda: all("RankError: " in hosts.said(host) for host in range(2)), 40)
        said = [hosts.said(host) for host in range(2)]
        assert agents[0].wait(40) != 0
    inside = 1 if "no sign of life" in said[1] else 0  # where the ranks' store is
    other = ("first-host", "second-host")[1 - inside]
    assert re.search(rf"RankError: rank \d on host {other} \(pid \d+\) has given no sign of life for", said[inside])
    assert re.search(r"RankError: the ranks' store \(\S+\) has not answered for \d+ s", said[1 - inside])
