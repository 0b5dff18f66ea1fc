"""Kubernetes: an indexed Job, whose pods are the nodes, and a headless Service, by which they know each other's names.

A rank that fails is started again in its pod, by the agent; a pod that fails is replaced, up to so many times for each
node; a pod that is evicted or preempted is replaced and not counted.  Called by `launchers/submit.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .job import MARGIN_S, Job, agent_command
from .tools import ask
from .yaml_text import to_yaml

RUNS = "/runs"  # where the volume with the run folders is mounted
_PATIENCE_S = 600  # pods need not start together: images are pulled, and nodes added


def manifests(
    job: Job,
    *,
    image: str,
    claim: str,
    namespace: str | None = None,
    node_selector: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The Service and the Job.

    Args:
        job: what is run; its folder lies below `RUNS`, its ``workdir`` is in the image.
        image: of a container in which ``launchers/train.py`` runs.
        claim: name of a PersistentVolumeClaim for run folders; with several nodes one that many may write.
        namespace: None: kubectl's.
        node_selector: what the nodes must have, ``label=value`` each.
    """
    if not job.folder.startswith(f"{RUNS}/"):
        raise ValueError(f"folder is {job.folder!r}; the volume is mounted at {RUNS}: use {RUNS}/NAME")
    if job.gpu_type:
        raise ValueError(
            f"gpu_type is {job.gpu_type!r}; on Kubernetes give a number alone, and choose nodes with --node-selector"
        )
    for word in node_selector:
        if not re.fullmatch(r"[^=]+=[^=]*", word):
            raise ValueError(f"node_selector has {word!r}; write label=value")
    metadata = {"name": job.name, **({"namespace": namespace} if namespace else {})}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": job.name},
        },
    }
    batch_job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": job.num_nodes,
            "parallelism": job.num_nodes,
            "backoffLimit": job.num_nodes * job.max_restarts,
            "podReplacementPolicy": "Failed",  # not while the one before may still write
            "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
            "template": {"spec": _pod(job, image, claim, node_selector)},
        },
    }
    return [service, batch_job]


def _pod(job: Job, image: str, claim: str, node_selector: Sequence[str]) -> dict[str, Any]:
    requests = {
        "cpu": job.cpus_per_node,
        "memory": f"{job.memory_gb_per_node}Gi" if job.memory_gb_per_node else None,
    }
    resources = {
        "requests": {name: str(value) for name, value in requests.items() if value},
        "limits": {"nvidia.com/gpu": str(job.gpus_per_node)} if job.gpus_per_node else {},
    }
    container = {
        "name": "agent",
        "image": image,
        **({"workingDir": job.workdir} if job.workdir else {}),
        "command": ["sh", "-c"],
        "args": [_unexpanded(_pod_script(job))],
        "resources": {name: amounts for name, amounts in resources.items() if amounts},
        "volumeMounts": [{"name": "runs", "mountPath": RUNS}, {"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    return {
        "subdomain": job.name,  # the Service
        "restartPolicy": "Never",  # what the failure policy demands
        "terminationGracePeriodSeconds": job.grace_s + MARGIN_S,
        **({"nodeSelector": dict(word.split("=") for word in node_selector)} if node_selector else {}),
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},  # a container's own is 64 MiB
        ],
    }


def _pod_script(job: Job) -> str:
    agent = agent_command(job, host=f"{job.name}-0.{job.name}", is_host=f"$is_host,read_timeout={_PATIENCE_S}")
    return f'[ "$JOB_COMPLETION_INDEX" = 0 ] && is_host=true || is_host=false\nexec {agent}\n'


def _unexpanded(script: str) -> str:
    """A script as an argument of a container, in which Kubernetes would replace ``$(NAME)``, and ``$$`` by ``$``."""
    return re.sub(r"\$(?=[$(])", "$$", script)


def text(documents: list[dict[str, Any]]) -> str:
    """What kubectl gets."""
    return "---\n".join(map(to_yaml, documents))


def check(documents: list[dict[str, Any]]) -> str:
    """Hold manifests against the schemas of Kubernetes, where kubernetes-validate is installed; what was done.

    Raises:
        ValueError: names the field that does not fit.
    """
    try:
        import kubernetes_validate
    except ImportError:
        return "not checked against Kubernetes' schemas: pip install kubernetes-validate"
    version = kubernetes_validate.latest_version()
    for document in documents:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise ValueError(f"{document['kind']} {document['metadata']['name']}: {error}") from error
    return f"checked against the strict schemas of Kubernetes {version}"


def submit(documents: list[dict[str, Any]], job: Job, namespace: str | None) -> str:
    """Create them; how to look at the job and delete it."""
    said = ask(["kubectl", "create", "-f", "-"], text(documents))
    there = f" --namespace {namespace}" if namespace else ""
    return (
        f"{said}\n    kubectl{there} get pods --selector job-name={job.name}\n"
        f"    kubectl{there} logs --follow --prefix --selector job-name={job.name}\n"
        f"    kubectl{there} delete job,service {job.name}"
    )
