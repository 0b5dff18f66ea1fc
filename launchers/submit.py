"""Train a recipe on other machines:  python launchers/submit.py BACKEND RECIPE [name=value ...] [placement]

    hosts        ssh to a list of hosts: starts them, shows their output, stops all when one fails
    slurm        an sbatch script, and array jobs for sweeps; requeued jobs go on where they were
    kubernetes   an indexed Job with a headless Service
    skypilot     a task file, launched as a managed job: clouds, node pools, spot instances

Recipe and overrides are those of launchers/train.py.  --dry-run prints exactly what would be submitted, and checks it.
python launchers/submit.py BACKEND --help lists the placement; docs/clusters.md has the rest.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from backends import hosts, kubernetes, skypilot, slurm
from backends.job import Job, name_of_folder
from train import build

from rlsurreal.distributed.ranks import Ranks
from rlsurreal.runners import Trainer
from rlsurreal.runners.division import divide
from rlsurreal.utils import config
from rlsurreal.utils.text_values import parse_value

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_arguments(argv)
    try:
        status: int = args.backend(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


# ---------------------------------------------------------------- the backends


def on_hosts(args: argparse.Namespace) -> int:
    """Run on hosts until all have ended."""
    job = make_job(args, num_nodes=len(args.hosts), workdir=args.workdir)
    text = hosts.text(job, args.hosts, args.ssh)
    if args.dry_run:
        print(text, end="")
        note("checked by bash -n")
        return 0
    note(f"run folder: {job.folder}")
    status: int = hosts.run(hosts.commands(job, args.hosts, args.ssh), job.grace_s)
    return status


def on_slurm(args: argparse.Namespace) -> int:
    """Submit to Slurm."""
    sweep = product(args.sweep)
    job = make_job(args, sweep=sweep, workdir=args.workdir)
    text = slurm.script(job, time=args.time, partition=args.partition, options=args.sbatch, sweep=sweep)
    return finish(args, text, lambda: slurm.check(text), lambda: slurm.submit(text, job, bool(sweep)))


def on_kubernetes(args: argparse.Namespace) -> int:
    """Create a Job."""
    job = make_job(args, root=kubernetes.RUNS, workdir=args.workdir, elsewhere=True)
    documents = kubernetes.manifests(
        job,
        image=args.image,
        claim=args.claim,
        namespace=args.namespace,
        node_selector=args.node_selector,
    )
    return finish(
        args,
        kubernetes.text(documents),
        lambda: kubernetes.check(documents),
        lambda: kubernetes.submit(documents, job, args.namespace),
    )


def on_skypilot(args: argparse.Namespace) -> int:
    """Launch a managed job."""
    job = make_job(args, root=skypilot.RUNS, workdir=str(ROOT), elsewhere=True)
    content = skypilot.task(job, runs=args.runs, infra=args.infra, spot=args.spot, image=args.image, setup=args.setup)
    return finish(
        args,
        skypilot.text(content),
        lambda: skypilot.check(content),
        lambda: skypilot.submit(content, job, args.pool),
    )


def finish(args: argparse.Namespace, text: str, check: Any, submit: Any) -> int:
    """Check what would be submitted; then print it, or submit it."""
    if args.dry_run:
        print(text, end="")
        note(check())
        return 0
    note(check())
    print(submit())
    return 0


# ---------------------------------------------------------------- from the command line


def make_job(
    args: argparse.Namespace,
    *,
    sweep: list[list[str]] | None = None,
    num_nodes: int | None = None,
    root: str | None = None,
    workdir: str | None,
    elsewhere: bool = False,
) -> Job:
    """The job that the arguments ask for, of a recipe that has been checked.

    Args:
        args: of the command line.
        sweep: further overrides of each element; the first one names the job.
        num_nodes: default: what they say.
        root: for run folders; default: the experiment's own.
        workdir: of the job.
        elsewhere: with other packages than there are here.

    Raises:
        ValueError: an element of the sweep cannot be built, or divided over the job's ranks; or two are the same.
    """
    trainers = [build(args.recipe, [*args.overrides, *words]) for words in sweep or [[]]]
    trainer = trainers[0]
    gpu_type, _, num_gpus = str(getattr(args, "gpus", 0)).rpartition(":")
    if not num_gpus.isdecimal():
        raise ValueError(f"--gpus is {args.gpus!r}; write a number, or TYPE:NUMBER")
    folder = args.folder or f"{root or trainer.root}/{trainer.name}_{time.strftime('%Y%m%d-%H%M%S')}"
    name = args.name or name_of_folder(folder)
    job = Job(
        name=name,
        recipe=args.recipe,
        overrides=tuple(args.overrides),
        folder=folder,
        workdir=workdir,
        num_nodes=num_nodes or args.nodes,
        ranks_per_node=args.ranks_per_node or int(num_gpus) or 1,
        cpus_per_node=getattr(args, "cpus", None),
        gpus_per_node=int(num_gpus),
        gpu_type=gpu_type or None,
        memory_gb_per_node=getattr(args, "memory", None),
        max_restarts=args.max_restarts,
        grace_s=args.grace,
        python=args.python,
        env=tuple(args.env),
        # Of runs on the same hosts, each has a port of its own, nearly always.
        port=getattr(args, "port", None) or 20_000 + zlib.crc32(name.encode()) % 10_000,
    )
    for each in trainers:
        try:
            each.check_parts()
        except ValueError as error:
            if not elsewhere:
                raise
            note(f"as seen from here, {error}; it must be there where the job runs (docs/clusters.md)")
        check_division(each, job, asks_for_gpus=hasattr(args, "gpus"))
    return job


def check_division(trainer: Trainer, job: Job, asks_for_gpus: bool) -> None:
    """ValueError if the experiment cannot be divided over the job's ranks, or has not the GPUs it wants."""
    if trainer.ranks != 1:
        raise ValueError(f"ranks is {trainer.ranks}, and ranks are started from outside; use --ranks-per-node instead")
    divide(trainer.algo, trainer.sampler, Ranks(0, job.num_ranks), trainer.scaling)
    wants_gpus = trainer.device.startswith("cuda")
    if asks_for_gpus and wants_gpus and job.gpus_per_node < job.ranks_per_node:
        raise ValueError(
            f"device is {trainer.device!r}, and {job.ranks_per_node} ranks of a node have {job.gpus_per_node} GPUs; "
            f"each needs one: --gpus {job.ranks_per_node}"
        )
    if job.gpus_per_node and not wants_gpus:
        raise ValueError(f"device is {trainer.device!r}, so GPUs would be idle; add device=cuda, or leave out --gpus")


def product(words: list[str]) -> list[list[str]]:
    """The overrides of each element of a sweep, from words like ``seed=0,1,2``."""
    # In brackets of our own: those of a value stay.
    values = {name: parse_value(f"({text})", tuple[str, ...]) for name, text in config.parse_overrides(words).items()}
    for name, several in values.items():
        if len(set(several)) < len(several):
            raise ValueError(f"--sweep has a value of {name} twice: {', '.join(several)}")
    if not values:
        return []
    return [
        [f"{name}={value}" for name, value in zip(values, chosen)] for chosen in itertools.product(*values.values())
    ]


def note(text: str) -> None:
    """Say something beside what is submitted."""
    print(f"submit: {text}", file=sys.stderr, flush=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as attributes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = parser.add_subparsers(metavar="BACKEND", required=True)
    add_hosts(backends)
    add_slurm(backends)
    add_kubernetes(backends)
    add_skypilot(backends)
    return parser.parse_args(argv)


def add_backend(backends: Any, name: str, run: Any, module: Any, python: str, max_restarts: int = 3) -> Any:
    """A backend's parser, with what all of them take."""
    parser = backends.add_parser(name, description=module.__doc__.partition("\n")[0])
    parser.set_defaults(backend=run)
    parser.add_argument("recipe", help="name of a recipe; launchers/train.py --list has them")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings to change")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, check it, and stop")
    parser.add_argument("--folder", metavar="RUN", help="the run's; given again, the run goes on (default: a new one)")
    parser.add_argument("--name", help="of the job (default: from the run's folder)")
    parser.add_argument("--ranks-per-node", type=int, metavar="N", help="learners (default: one for each GPU, or 1)")
    parser.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        default=max_restarts,
        help="how often failed ranks are started again (default: %(default)s)",
    )
    parser.add_argument(
        "--grace", type=int, metavar="SECONDS", default=120, help="for saving when told to stop (default: %(default)s)"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=value", help="environment variable (several: --env again)"
    )
    parser.add_argument("--python", default=python, help="interpreter on the nodes (default: %(default)s)")
    return parser


def add_nodes(parser: Any, *, cpus_required: bool = False) -> None:
    """What is asked of a cluster."""
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--cpus", type=int, metavar="N", required=cpus_required, help="of a node")
    parser.add_argument("--gpus", default="0", metavar="[TYPE:]N", help="of a node")
    parser.add_argument("--memory", type=int, metavar="GB", help="of a node")


def add_hosts(backends: Any) -> None:
    """Arguments of the backend hosts."""
    parser = add_backend(backends, "hosts", on_hosts, hosts, sys.executable, max_restarts=0)
    parser.add_argument(
        "--hosts",
        required=True,
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="[user@]address of each; the first is where they meet",
    )
    parser.add_argument("--ssh", default=hosts.SSH, help="what is given a host and a command (default: %(default)s)")
    parser.add_argument("--workdir", default=str(ROOT), help="rlsurreal's on the hosts (default: %(default)s)")
    parser.add_argument("--port", type=int, help="where they meet (default: from the job's name)")


def add_slurm(backends: Any) -> None:
    """Arguments of the backend slurm."""
    parser = add_backend(backends, "slurm", on_slurm, slurm, sys.executable)
    add_nodes(parser, cpus_required=True)
    parser.add_argument("--time", metavar="LIMIT", help="after which the job is queued again: minutes, or D-HH:MM:SS")
    parser.add_argument("--partition", metavar="NAME", help="(default: the cluster's)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="more: --sbatch=--account=me")
    parser.add_argument(
        "--sweep", nargs="+", default=[], metavar="name=a,b,...", help="an array job over all combinations"
    )
    parser.add_argument("--workdir", default=str(ROOT), help="rlsurreal's on the nodes (default: %(default)s)")


def add_kubernetes(backends: Any) -> None:
    """Arguments of the backend kubernetes."""
    parser = add_backend(backends, "kubernetes", on_kubernetes, kubernetes, "python")
    add_nodes(parser)
    parser.add_argument("--image", required=True, help="of a container in which launchers/train.py runs")
    parser.add_argument("--claim", required=True, help="PersistentVolumeClaim for run folders")
    parser.add_argument("--workdir", help="rlsurreal's in the image (default: where its containers start)")
    parser.add_argument("--namespace", help="(default: kubectl's)")
    parser.add_argument("--node-selector", nargs="+", default=[], metavar="label=value", help="of the nodes")


def add_skypilot(backends: Any) -> None:
    """Arguments of the backend skypilot."""
    parser = add_backend(backends, "skypilot", on_skypilot, skypilot, "python")
    add_nodes(parser)
    parser.add_argument("--runs", required=True, help="bucket (s3://name) or volume for run folders")
    parser.add_argument(
        "--infra",
        action="append",
        default=[],
        metavar="PLACE",
        help="cloud/region/zone, k8s/context or ssh/pool; several: whichever is cheapest (default: any)",
    )
    parser.add_argument("--spot", action="store_true", help="rent instances that may be taken away")
    parser.add_argument("--pool", help="of workers that are there already (sky jobs pool)")
    parser.add_argument("--image", help="docker:NAME or an image of the cloud's")
    parser.add_argument("--setup", default=skypilot.SETUP, help="installs what is needed (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(main())
