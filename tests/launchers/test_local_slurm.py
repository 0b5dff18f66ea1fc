"""Jobs on a real Slurm: a controller and two nodes, all on this machine, with nothing shared with another Slurm."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/slurmd.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldLogFile={folder}/slurmctld.log
ReturnToService=2
SchedulerType=sched/builtin
SelectType=select/cons_tres
KillWait=10
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """The folder of a running cluster, which commands find through SLURM_CONF."""
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs {', '.join(missing) or 'root'} (Debian's packages slurm-wlm and munge, run by root)")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "slurmd.n1", "slurmd.n2"):
        (folder / name).mkdir()
    controller, first = free_ports()
    text = CONFIGURATION.format(folder=folder, controller_port=controller, first_port=first, last_port=first + 1)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            munge = {
                "key-file": "munge.key",
                "socket": "munge.socket",
                "pid-file": "munge.pid",
                "log-file": "munge.log",
            }
            options = [f"--{option}={folder / name}" for option, name in munge.items()]
            subprocess.run(["munged", "--force", f"--seed-file={folder}/munge.seed", *options], check=True)
            subprocess.run(["slurmctld"], check=True)
            for node in ("n1", "n2"):
                subprocess.run(["slurmd", "-N", node], check=True)
            wait_for(lambda: ask("sinfo", "--noheader", "--format=%D %t").strip() == "2 idle", 60)
            yield folder
        finally:
            for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munge.pid"):
                stop_daemon(folder / name)


def free_ports() -> tuple[int, int]:
    """A free port, and the first of two neighbours."""
    while True:
        with closing(socket.create_server(("", 0))) as one, closing(socket.create_server(("", 0))) as two:
            controller, first = one.getsockname()[1], two.getsockname()[1]
            try:
                socket.create_server(("", first + 1)).close()
            except OSError:
                continue
            return controller, first


def stop_daemon(pid_file: Path) -> None:
    if pid_file.exists():
        process = psutil.Process(int(pid_file.read_text()))
        process.terminate()
        try:
            process.wait(10)
        except psutil.TimeoutExpired:
            process.kill()


def ask(*words: str) -> str:
    return subprocess.run(words, check=True, text=True, capture_output=True).stdout


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def submit(*words: object) -> str:
    """The number of a job with quickly started, small runs."""
    common = ["compile=off", "log_interval_steps=512", "tensorboard=false"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launchers" / "submit.py"), "slurm", "debug", *common, *map(str, words)],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "checked by sbatch --test-only: sbatch: Job" in done.stderr
    return re.search(r"submitted job (\d+)", done.stdout)[1]


def state(job: str) -> str:
    return re.search(r"JobState=(\w+)", ask("scontrol", "--oneliner", "show", "job", job))[1]


def wait_until_it_ends(job: str, log: Path) -> None:
    wait_for(lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), 120)
    assert state(job) == "COMPLETED", log.read_text() if log.exists() else "no log"


def progress(run: Path) -> list[int]:
    path = run / "progress.csv"
    return [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]] if path.exists() else []


def test_a_job_on_two_nodes_goes_on_where_it_was_after_each_way_to_be_stopped(cluster, tmp_path):
    run, log = tmp_path / "run_0", tmp_path / "run_0.log"
    total = 100_000  # some 15 s
    job = submit(f"total_env_steps={total}", "--nodes", 2, "--cpus", 1, "--folder", run, "--time", 60)

    def wait_for_progress(after: int) -> None:
        wait_for(lambda: progress(run)[-1:] > [after], 60)

    def start_now() -> None:  # Slurm lets a requeued job wait for two minutes
        wait_for(lambda: state(job) == "PENDING", 60)
        ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    wait_for_progress(0)
    ask("scancel", "--signal=TERM", job)  # what the nodes get before the time limit, and with notice of preemption
    start_now()
    saved = progress(run)[-1]
    assert "exit code 143" in log.read_text()
    wait_for_progress(saved)
    ask("scontrol", "requeue", job)  # preemption without notice
    start_now()
    wait_until_it_ends(job, log)
    assert (run / "log.txt").read_text().count("resumed after") == 2
    assert progress(run) == sorted(set(progress(run))) and progress(run)[-1] >= total
    assert "Restarts=2" in ask("scontrol", "--oneliner", "show", "job", job)


def test_a_sweep_runs_each_combination_in_its_own_folder(cluster, tmp_path):
    sweep = ["--sweep", "seed=3,4", "agent.model.kwargs.hidden_sizes=(8,8),(16,)"]
    job = submit("total_env_steps=512", "--cpus", 1, "--folder", tmp_path / "run", *sweep)
    found = []
    for element in range(4):
        wait_until_it_ends(f"{job}_{element}", tmp_path / f"run_{element}.log")
        words = [sys.executable, str(ROOT / "launchers" / "train.py"), "--resume", str(tmp_path / f"run_{element}")]
        settings = ask(*words, "--print-config").splitlines()
        found.append([s for s in settings if s.startswith(("seed=", "agent.model.kwargs.hidden_sizes="))])
    assert sorted(map(sorted, found)) == [
        [f"agent.model.kwargs.hidden_sizes={sizes}", f"seed={seed}"] for sizes in ("(16,)", "(8, 8)") for seed in (3, 4)
    ]


def test_a_job_that_is_cancelled_or_fails_is_not_requeued(cluster, tmp_path):
    job = submit("total_env_steps=100_000_000", "--cpus", 1, "--folder", tmp_path / "run")
    wait_for(lambda: progress(tmp_path / "run") != [], 60)
    ask("scancel", job)
    wait_for(lambda: state(job) == "CANCELLED", 60)
    time.sleep(2)
    assert state(job) == "CANCELLED"
    wait_for(lambda: not processes_with(str(tmp_path)), 30)
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint_*.pt")), "it saved"

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "checkpoints").write_text("not a folder")
    job = submit("--cpus", 1, "--folder", broken, "--max-restarts", 0)
    wait_for(lambda: state(job) == "FAILED", 60)
    assert "FileExistsError" in (tmp_path / "broken.log").read_text()


def processes_with(text: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if text in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
    ]


def test_slurm_itself_refuses_what_the_cluster_has_not(cluster, tmp_path):
    words = ["slurm", "debug", "--folder", str(tmp_path / "run"), "--dry-run"]
    for more in (["--cpus", "1", "--nodes", "3"], ["--cpus", "1", "--partition", "none"], ["--cpus", "2"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "launchers" / "submit.py"), *words, *more], text=True, capture_output=True
        )
        assert done.returncode == 2 and "sbatch --test-only fails" in done.stderr, done.stderr
