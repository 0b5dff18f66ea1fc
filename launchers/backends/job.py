"""What runs on every node, whatever starts it there: one agent of torchrun, which starts the node's ranks.

The backends beside this file put `agent_command` into a script, a manifest or a task file; `launchers/submit.py` makes
the `Job` and calls them.  Agents find each other at the first node (c10d rendezvous); they start the ranks anew when
one has failed, and because the run's folder is the same, training goes on from its latest checkpoint.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

MARGIN_S = 30  # by which whatever ends a node's agent waits longer than the agent waits for its ranks
_VARIABLE = re.compile(r"[A-Za-z_]\w*=[^\n]*")
_FOLDER = re.compile(r"/?[\w.+-]+(/[\w.+-]+)*")
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_MAX_NAME = 50  # Kubernetes appends a pod's number, and allows 63 characters


@dataclass(frozen=True)
class Job:
    """One run of a recipe on one or several nodes."""

    name: str  # in the queues of clusters: small letters, digits and hyphens
    recipe: str
    overrides: tuple[str, ...]
    folder: str  # of the run, as nodes see it; relative to ``workdir``
    workdir: str | None = None  # with launchers/train.py, as nodes see it; None: where they start anyway
    num_nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int = 0
    gpu_type: str | None = None
    memory_gb_per_node: int | None = None
    max_restarts: int = 3  # of the ranks, by their agents
    grace_s: int = 120  # for saving, after a node has been told to stop
    python: str = "python"
    port: int = 29400  # of the rendezvous, on the first node
    env: tuple[str, ...] = ()  # NAME=value, of the nodes' processes

    def __post_init__(self) -> None:
        for name, least in (("num_nodes", 1), ("ranks_per_node", 1), ("gpus_per_node", 0), ("max_restarts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("cpus_per_node", "memory_gb_per_node", "grace_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for word in self.env:
            if not _VARIABLE.fullmatch(word):
                raise ValueError(f"env has {word!r}; write NAME=value")
        if not 1024 <= self.port < 65536:
            raise ValueError(f"port is {self.port}; choose one from 1024 to 65535")
        if not _FOLDER.fullmatch(self.folder):  # it goes through shells and file formats with rules of their own
            raise ValueError(f"folder is {self.folder!r}; use letters, digits and any of _ . + - /")
        if not _NAME.fullmatch(self.name) or len(self.name) > _MAX_NAME:
            raise ValueError(
                f"name is {self.name!r}; use up to {_MAX_NAME} small letters, digits and hyphens, a letter first"
            )

    @property
    def num_ranks(self) -> int:
        """How many learners there are on all nodes."""
        return self.num_nodes * self.ranks_per_node


def name_of_folder(folder: str) -> str:
    """A job's name, from that of its run's folder."""
    words = re.sub(r"[^a-z0-9]+", "-", folder.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return (words if words[:1].isalpha() else f"run-{words}")[:_MAX_NAME].strip("-")


def agent_command(
    job: Job, *, host: str, is_host: str, port: str = "", options: str = "", overrides: str = "", folder: str = ""
) -> str:
    """The command of a node's agent, as shell text on several lines.

    Args:
        job: what is run.
        host: name or address of the first node; like all that follows, shell text, which is not quoted here.
        is_host: "true" on the first node, "false" elsewhere: nodes need not recognize themselves by their name.
        port: instead of the job's.
        options: more options of torchrun.
        overrides: more overrides of the recipe.
        folder: instead of the job's.
    """
    lines = [
        f"env PYTHONUNBUFFERED=1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT={job.grace_s} {shlex.join(job.env)}".rstrip(),
        f"{shlex.quote(job.python)} -m torch.distributed.run",
        f"--nnodes {job.num_nodes} --nproc-per-node {job.ranks_per_node} --max-restarts {job.max_restarts}",
        f"--rdzv-backend c10d --rdzv-endpoint {host}:{port or job.port} --rdzv-id {job.name}",
        f"--rdzv-conf is_host={is_host} {options}".rstrip(),
        f"launchers/train.py {shlex.join([job.recipe, *job.overrides])} {overrides}".rstrip(),
        f"--folder {folder or job.folder}",
    ]
    return " \\\n    ".join(lines)
