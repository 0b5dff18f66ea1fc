"""Hosts that ssh reaches: no daemon, no queue; this process starts the nodes, shows their output and stops them.

    main thread of `run` <--- events --- a thread for each host <--- output --- ssh <=== connection ===> node's shell
          |                                                                     ^                            |
          +---- closes its input (the sign to stop), kills it after a while ----+        keeps, and ends, the agent

    loop                  consumes              produces               waits for             is unblocked by
    `run`                 events                ends of inputs,        an event              a host's end, a signal, the
                                                kills                                        end of the time to stop
    `_relay`, each host   lines of output       lines here; an event   a line; ssh's end     output; a kill
    node's shell          the end of its input  signals to the agent   the agent; its input  the agent's end; the end of
                                                                                             the connection

A node stops when its input ends: because `run` closes it, or because ssh, this process or the connection has died.  So
nothing is left on any host, whatever fails where.  Called by `launchers/submit.py`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlsurreal.utils.os_signals import handled

from .job import MARGIN_S, Job, agent_command
from .tools import check_syntax

# No questions, and a lost host is noticed after some 15 s.
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
_SSH_FAILED = 255  # ssh's own status, where the connection could not be made or was lost


def node_script(job: Job, hosts: Sequence[str], index: int) -> str:
    """What bash runs on host ``index``."""
    agent = agent_command(
        job,
        host=shlex.quote(address(hosts[0])),
        is_host="true" if index == 0 else "false",
        options=f"--local-addr {shlex.quote(address(hosts[index]))}",
    )
    return f"""\
# Output that nobody can take any more goes nowhere, so that it cannot disturb the last save.
exec 3<&0 > >(cat; exec cat > /dev/null) 2>&1
cd {shlex.quote(job.workdir or ".")} || exit
{agent} < /dev/null 3<&- &
agent=$!
{{
    read -r -u 3  # nothing is ever sent: it returns when the connection has ended
    kill -TERM "$agent"
    for ((second = 0; second < {job.grace_s + MARGIN_S}; second++)); do
        kill -0 "$agent" || exit
        sleep 1
    done
    kill -KILL "$agent"
}} > /dev/null 2>&1 &
wait "$agent"
status=$?
kill $!
exit "$status"
"""


def commands(job: Job, hosts: Sequence[str], ssh: str = SSH) -> dict[str, list[str]]:
    """The command that starts each host's node.

    Args:
        job: with as many nodes as there are hosts.
        hosts: ``[user@]address``, the address being one under which the hosts reach each other.
        ssh: words that start ssh, or something else that takes a host and a shell command.
    """
    for host in hosts:
        if not address(host) or host.startswith("-") or hosts.count(host) > 1:
            raise ValueError(f"hosts has {host!r}; give each host once, as [user@]address")
    return {
        host: [*shlex.split(ssh), host, f"bash -c {shlex.quote(node_script(job, hosts, index))}"]
        for index, host in enumerate(hosts)
    }


def text(job: Job, hosts: Sequence[str], ssh: str = SSH) -> str:
    """The scripts of all hosts, for a person.  ValueError if bash cannot read one."""
    scripts = [node_script(job, hosts, index) for index in range(len(commands(job, hosts, ssh)))]
    for script in scripts:
        check_syntax(script)
    return "\n".join(f"# {ssh} {host} bash -c ...\n{script}" for host, script in zip(hosts, scripts))


def address(host: str) -> str:
    """Where a host is reached, without the user."""
    return host.rpartition("@")[2]


def run(started: Mapping[str, Sequence[str]], grace_s: int) -> int:
    """Run the hosts' commands until all have ended; stop all when one fails or this process is told to stop.

    Args:
        started: each host's command.
        grace_s: what hosts have to stop, in seconds, before their connections are cut.

    Returns:
        The exit status: 0, 1 if a host failed, 128 and the signal's number if a signal came.
    """
    events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()  # (host or "", status or signal)
    width = max(map(len, started))
    with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda number: events.put(("", number))):
        processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for host, words in started.items():
                processes[host] = _start(words)
                threading.Thread(target=_relay, args=(host, width, processes[host], events), daemon=True).start()
            return _watch(processes, events, grace_s + 2 * MARGIN_S)
        finally:
            _kill(processes.values())


def _watch(processes: dict[str, subprocess.Popen[bytes]], events: Any, stop_s: float) -> int:
    """Wait for all hosts; the exit status."""
    running, result = set(processes), 0
    deadline: float | None = None  # set once hosts have been told to stop
    while running:
        try:
            host, status = events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            _say(f"no longer waiting for {', '.join(sorted(running))}")
            return result
        running.discard(host)
        if not host:
            _say(f"{signal.Signals(status).name}: stopping the hosts{'' if deadline is None else ' at once'}")
            result = 128 + status
        elif status and deadline is None:
            _say(f"{host} {_describe(status)}{'; stopping the others' if running else ''}")
            result = 1
        else:
            continue
        for process in processes.values():
            with contextlib.suppress(OSError):  # of one that has ended
                process.stdin.close()  # type: ignore[union-attr]
        deadline = time.monotonic() + (stop_s if deadline is None else 0.0)
    return result


def _describe(status: int) -> str:
    if status == _SSH_FAILED:
        return "is not reached (any more): ssh has failed"
    return f"failed: killed by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C comes here alone, and output is shown until the end
        )
    except OSError as error:
        raise ValueError(
            f"cannot run {words[0]!r} ({error.strerror}); install ssh, or name another with --ssh"
        ) from error


def _relay(host: str, width: int, process: subprocess.Popen[bytes], events: Any) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]  # of a progress bar, its last state
        try:
            print(f"{host:{width}} | {text}", flush=True)
        except OSError:  # whoever read this has gone, or the disk is full
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            events.put(("", signal.SIGPIPE))
    events.put((host, process.wait()))


def _kill(processes: Any) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _say(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)
