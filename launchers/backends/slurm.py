"""Slurm: an sbatch script with one agent on every node; a sweep is an array job.

Preempted, requeued or cut off at its time limit, a job goes on in the same run folder: told to stop (SIGTERM, in time
to save), the nodes' agents end with status 143, and the script puts the job back into the queue.  Called by
`launchers/submit.py`.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from .job import MARGIN_S, Job, agent_command
from .tools import ask, check_syntax

_STOPPED = 143  # 128 and SIGTERM's number
_START_S = 120  # Slurm may signal a minute sooner than it is told; and there must be something to save


def script(
    job: Job,
    *,
    time: str | None = None,
    partition: str | None = None,
    options: Sequence[str] = (),
    sweep: Sequence[Sequence[str]] = (),
) -> str:
    """The text that sbatch gets.

    Args:
        job: what is run; ``workdir`` and ``folder`` are on a file system that all nodes share.
        time: limit, as sbatch takes it; when it is reached the job is requeued.
        partition: None: the cluster's default.
        options: more of sbatch, whole: ``--account=name``.
        sweep: the overrides of each element of an array job; none: a single job.  Element i has the folder
            ``job.folder``_i.
    """
    header = _header(job, time, partition, options, len(sweep))
    cases = [f"    {i}) set -- {shlex.join(words)} ;;" for i, words in enumerate(sweep)]
    element = "_$SLURM_ARRAY_TASK_ID" if sweep else ""
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in header),
            "",
            *(["case $SLURM_ARRAY_TASK_ID in", *cases, "esac", ""] if sweep else []),
            _on_node(job, '"$@"' if sweep else "", f'"{job.folder}{element}"'),
            _on_first_node(job, f"${{SLURM_ARRAY_JOB_ID}}{element}" if sweep else "$SLURM_JOB_ID"),
        ]
    )


def log_file(job: Job, sweep: bool = False) -> str:
    """Where a job's output goes, beside its run folder; of a sweep, with sbatch's sign for the element's number."""
    return f"{job.folder}_%a.log" if sweep else f"{job.folder}.log"


def check(text: str) -> str:
    """Let Slurm judge a script; what it says.  ValueError if it refuses."""
    check_syntax(text)
    if not shutil.which("sbatch"):
        return "checked by bash -n alone: there is no sbatch here"
    return f"checked by sbatch --test-only: {ask(['sbatch', '--test-only'], text)}"


def submit(text: str, job: Job, sweep: bool = False) -> str:
    """Put a script into the queue; how to look at the job and cancel it."""
    parent = (Path(job.workdir or ".") / job.folder).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)  # for the log, which sbatch makes no folder for
    except OSError as error:
        raise ValueError(f"cannot make the folder {parent} ({error.strerror}); choose another --folder") from error
    number = ask(["sbatch", "--parsable"], text).rpartition("\n")[2].partition(";")[0]
    return (
        f"submitted job {number}, {job.name}\n    squeue --job {number}\n"
        f"    tail -F {log_file(job, sweep).replace('%a', '*')}\n    scancel {number}"
    )


def _header(job: Job, time: str | None, partition: str | None, options: Sequence[str], num_elements: int) -> list[str]:
    for option in options:
        if not option.startswith("-") or "\n" in option:
            raise ValueError(f"option of sbatch is {option!r}; write it whole: --account=name")
    least = job.grace_s + MARGIN_S + _START_S
    if time is not None and (seconds := seconds_of(time)) is not None and seconds <= least:
        raise ValueError(
            f"--time is {time!r}, {seconds} seconds (a number alone is minutes); the job is told to stop {job.grace_s} "
            f"+ {MARGIN_S} seconds before its end (--grace), and needs some to start: give it more than {least}"
        )
    if job.cpus_per_node is None:
        raise ValueError("cpus_per_node is not given; Slurm would give a node's ranks one CPU: say how many")
    gpus = f"{job.gpu_type}:{job.gpus_per_node}" if job.gpu_type else job.gpus_per_node
    given = {
        "job-name": job.name,
        "array": f"0-{num_elements - 1}" if num_elements else None,
        "partition": partition,
        "nodes": job.num_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus_per_node,
        "gpus-per-node": gpus or None,
        "mem": f"{job.memory_gb_per_node}G" if job.memory_gb_per_node else None,
        "time": time,
        "chdir": job.workdir,
        "output": log_file(job, num_elements > 0),
        "open-mode": "append",
        "signal": f"TERM@{job.grace_s + MARGIN_S}",
    }
    return [*(f"--{name}={value}" for name, value in given.items() if value is not None), "--requeue", *options]


def seconds_of(time: str) -> int | None:
    """A limit of Slurm's (minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in seconds; None: it is no number."""
    days, has_days, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [*parts, *([days] if has_days else [])]) or len(parts) > 3:
        return None
    numbers = list(map(int, parts))
    if has_days:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _on_node(job: Job, overrides: str, folder: str) -> str:
    """What each node runs, as a function of the shell."""
    agent = agent_command(
        job, host='"$address"', port='"$port"', is_host="$is_host", overrides=overrides, folder=folder
    ).replace("\n", "\n    ")
    return f"""\
on_node() {{  # an agent; told to stop, it ends with a status that says so
    [ "$SLURM_NODEID" = 0 ] && is_host=true || is_host=false
    trap 'is_told=yes; kill -TERM "$agent"' TERM
    # Away from this group, all of which Slurm may signal: two signals at once upset the agent.
    setsid {agent} &
    agent=$!
    wait "$agent"
    status=$?
    if [ "$is_told" ]; then  # the signal has ended the wait, not the agent
        wait "$agent"
        status=$?
        [ "$status" = 0 ] || status={_STOPPED}
    fi
    exit "$status"
}}
"""


def _on_first_node(job: Job, job_id: str) -> str:
    return f"""\
# Where agents meet: a node's name need not be known to the others, but the address that Slurm uses is.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol --oneliner show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)
port=$((20000 + SLURM_JOB_ID % 10000))  # jobs may share a node
export address port
srun --nodes={job.num_nodes} --ntasks-per-node=1 --cpus-per-task={job.cpus_per_node} \\
    --kill-on-bad-exit=0 --wait={job.grace_s + MARGIN_S} \\
    bash -c "$(declare -f on_node); on_node \\"\\$@\\"" on_node "$@"
status=$?
if [ "$status" = {_STOPPED} ]; then
    scontrol requeue "{job_id}"
fi
exit "$status"
"""
