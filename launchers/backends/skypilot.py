"""SkyPilot: a task file for clouds, Kubernetes, node pools and spot instances, launched as a managed job.

SkyPilot finds and rents the nodes, and rents others when they are lost; the run goes on in the same folder, which lies
in a bucket or on a volume.  Called by `launchers/submit.py`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .job import Job, agent_command
from .tools import ask
from .yaml_text import to_yaml

RUNS = "/runs"  # where the bucket or volume with the run folders is mounted
SETUP = "pip install -c constraints.txt -e ."
_PARSE = "import sys, sky; sky.Task.from_yaml(sys.argv[1])"


def task(
    job: Job,
    *,
    runs: str,
    infra: Sequence[str] = (),
    spot: bool = False,
    image: str | None = None,
    setup: str = SETUP,
) -> dict[str, Any]:
    """The task file's content.

    Args:
        job: what is run; its folder lies below `RUNS`, its ``workdir`` is a folder here, which SkyPilot sends.
        runs: a bucket (``s3://name``), or the name of one of SkyPilot's volumes.
        infra: ``cloud/region/zone``, ``k8s/context`` or ``ssh/pool``, of which SkyPilot takes the cheapest that has
            nodes; none: any.
        spot: whether to rent what may be taken away.
        image: for example ``docker:NAME``.
        setup: shell text that installs what is needed, in ``workdir``.
    """
    if not job.folder.startswith(f"{RUNS}/"):
        raise ValueError(f"folder is {job.folder!r}; the bucket is mounted at {RUNS}: use {RUNS}/NAME")
    if job.gpus_per_node and not job.gpu_type:
        raise ValueError("gpu_type is not given; SkyPilot rents by it: --gpus H100:8")
    resources = {
        **_places(infra),
        "accelerators": f"{job.gpu_type}:{job.gpus_per_node}" if job.gpus_per_node else None,
        "cpus": f"{job.cpus_per_node}+" if job.cpus_per_node else None,
        "memory": f"{job.memory_gb_per_node}+" if job.memory_gb_per_node else None,
        "use_spot": spot,
        "image_id": image,
        "job_recovery": {"max_restarts_on_errors": job.max_restarts},
    }
    return {
        "name": job.name,
        "workdir": job.workdir or ".",
        "num_nodes": job.num_nodes,
        "resources": {name: value for name, value in resources.items() if value is not None},
        # The cached way is the one that can append to files.
        **(
            {"file_mounts": {RUNS: {"source": runs, "mode": "MOUNT_CACHED"}}}
            if "://" in runs
            else {"volumes": {RUNS: runs}}
        ),
        "setup": f"{setup}\n",
        "run": _run(job),
    }


def _places(infra: Sequence[str]) -> dict[str, Any]:
    if len(infra) > 1:
        return {"any_of": [{"infra": place} for place in infra]}
    return {"infra": infra[0]} if infra else {}


def _run(job: Job) -> str:
    agent = agent_command(
        job,
        host='"$first"',
        is_host="$is_host",
        options='--local-addr "$own"',
    )
    return f"""\
first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
own=$(echo "$SKYPILOT_NODE_IPS" | sed -n "$((SKYPILOT_NODE_RANK + 1))p")
[ "$SKYPILOT_NODE_RANK" = 0 ] && is_host=true || is_host=false
{agent}
"""


def text(content: dict[str, Any]) -> str:
    """The task file."""
    return to_yaml(content)


def find_sky() -> Path | None:
    """The ``sky`` command: on the PATH, or beside this interpreter."""
    found = shutil.which("sky") or shutil.which("sky", path=str(Path(sys.executable).parent))
    return Path(found).resolve() if found else None


def check(content: dict[str, Any]) -> str:
    """Let SkyPilot parse the task, where it is installed; what was done.  ValueError if it refuses."""
    sky = find_sky()
    if sky is None:
        return "not checked by SkyPilot: there is no sky command here (it may have an environment of its own)"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.yaml"
        path.write_text(text(content))
        ask([str(sky.with_name("python")), "-c", _PARSE, str(path)])
    return "checked by SkyPilot's own parser"


def submit(content: dict[str, Any], job: Job, pool: str | None) -> str:
    """Launch a managed job; how to look at it and cancel it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.yaml"
        path.write_text(text(content))
        words = ["jobs", "launch", "--yes", "--detach-run", *(["--pool", pool] if pool else []), str(path)]
        said = ask([str(find_sky() or "sky"), *words])
    return (
        f"{said}\nlaunched {job.name}\n    sky jobs queue\n    sky jobs logs --name {job.name}\n"
        f"    sky jobs cancel --name {job.name}"
    )
