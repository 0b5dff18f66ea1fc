"""Training on other machines: what is submitted, and that it does what it says when a shell runs it."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlsurreal import recipes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "launchers"))
try:
    import submit
    import train
    from backends import hosts, kubernetes, skypilot, slurm
    from backends.job import Job, name_of_folder
    from backends.yaml_text import to_yaml
finally:
    sys.path.pop(0)

WORDS = ("agent.model.kwargs.hidden_sizes=(64,64)", "name=$HOME", "root=$(id)", "a=it's", 'b="c d"', "d=$$", "e=\\n*")
WHERE = "it's $HOME $(here) $$"
JOB = Job(
    name="run-1",
    recipe="debug",
    overrides=WORDS,
    folder="runs/run_1",
    num_nodes=2,
    ranks_per_node=4,
    cpus_per_node=8,
    python="show-arguments",
    env=(f"WHERE={WHERE}",),
)
MOUNTED = dataclasses.replace(JOB, folder="/runs/run_1")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes a program on the PATH from the text of a script."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    make(
        "show-arguments",
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"assert os.environ['WHERE'] == {WHERE!r}\nprint(json.dumps(sys.argv[1:]))\n",
    )
    return make


# ---------------------------------------------------------------- what each node runs


def understood(output: str):
    """What torchrun takes the agent's arguments for."""
    from torch.distributed.run import parse_args

    arguments = json.loads(output)
    assert arguments[:2] == ["-m", "torch.distributed.run"]
    return parse_args(arguments[2:])


def check_agent(args, *, endpoint: str, is_host: bool, folder: str, more: tuple[str, ...] = ()) -> None:
    assert (args.nnodes, args.nproc_per_node, args.max_restarts) == ("2", "4", 3)
    assert (args.rdzv_backend, args.rdzv_id, args.rdzv_endpoint) == ("c10d", "run-1", endpoint)
    assert args.rdzv_conf.split(",")[0] == f"is_host={str(is_host).lower()}"
    assert args.training_script == "launchers/train.py"
    assert args.training_script_args == ["debug", *WORDS, *more, "--folder", folder]


@pytest.mark.parametrize("index", [0, 1])
def test_what_a_host_runs(programs, index):
    command = hosts.commands(JOB, ["me@10.0.0.1", "10.0.0.2"], "ssh -q")
    host = ["me@10.0.0.1", "10.0.0.2"][index]
    assert command[host][:-1] == ["ssh", "-q", host]
    with subprocess.Popen(["sh", "-c", command[host][-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        args = understood(shell.stdout.read())  # its input is open until the output has come
    assert shell.returncode == 0
    assert args.local_addr == ["10.0.0.1", "10.0.0.2"][index]
    check_agent(args, endpoint="10.0.0.1:29400", is_host=index == 0, folder="runs/run_1")


@pytest.mark.parametrize("index", [0, 1])
def test_what_a_node_of_slurm_runs(programs, index):
    programs(
        "scontrol", '#!/bin/sh\n[ "$2" = hostnames ] && printf "n4\\nn7\\n" || echo "NodeName=$4 NodeAddr=at-$4 Port=1"'
    )
    programs("srun", '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"')
    environment = {"SLURM_JOB_NODELIST": "n[4,7]", "SLURM_JOB_ID": "31234", "SLURM_NODEID": str(index)}

    def run(text: str, **more: str):
        done = subprocess.run(["bash"], input=text, text=True, capture_output=True, env=os.environ | environment | more)
        assert done.returncode == 0, done.stderr
        return understood(done.stdout)

    common = {"endpoint": "at-n4:21234", "is_host": index == 0}
    check_agent(run(slurm.script(JOB)), folder="runs/run_1", **common)
    sweep = [["seed=0"], ["seed=1", "sizes=(1,2)"]]
    args = run(slurm.script(JOB, sweep=sweep), SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="31200")
    check_agent(args, folder="runs/run_1_1", more=("seed=1", "sizes=(1,2)"), **common)


@pytest.mark.parametrize(("status", "is_requeued"), [(143, True), (1, False), (0, False)])
def test_slurm_requeues_a_job_that_was_told_to_stop(programs, tmp_path, status, is_requeued):
    programs("scontrol", f'#!/bin/sh\n[ "$1" != requeue ] || echo "$2" > {tmp_path}/requeued')
    programs("srun", f"#!/bin/sh\nexit {status}")
    environment = os.environ | {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    for sweep, job_id in (([], "9"), ([["seed=0"], ["seed=1"]], "7_1")):
        done = subprocess.run(["bash"], input=slurm.script(JOB, sweep=sweep), text=True, env=environment)
        assert done.returncode == status
        assert (tmp_path / "requeued").exists() == is_requeued
        assert not is_requeued or (tmp_path / "requeued").read_text().strip() == job_id


@pytest.mark.parametrize("index", [0, 1])
def test_what_a_pod_runs(programs, index):
    pod = kubernetes.manifests(MOUNTED, image="i", claim="c")[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = [as_kubernetes_expands(word) for word in container["command"] + container["args"]]
    done = subprocess.run(words, capture_output=True, env=os.environ | {"JOB_COMPLETION_INDEX": str(index)})
    # A pod's name is that of the job with its index, and it is found below the Service's.
    check_agent(understood(done.stdout), endpoint="run-1-0.run-1:29400", is_host=index == 0, folder="/runs/run_1")
    assert pod["subdomain"] == "run-1"


def as_kubernetes_expands(word: str) -> str:
    """A container's argument as the kubelet hands it over: ``$$`` is ``$``, and ``$(NAME)`` is a variable."""
    result, rest = "", word
    while rest:
        if rest.startswith("$$"):
            result, rest = result + "$", rest[2:]
        else:
            assert not rest.startswith("$("), f"Kubernetes would look for a variable: {rest}"
            result, rest = result + rest[0], rest[1:]
    return result


@pytest.mark.parametrize("index", [0, 1])
def test_what_a_node_of_skypilot_runs(programs, index):
    content = skypilot.task(MOUNTED, runs="s3://bucket")
    environment = {"SKYPILOT_NODE_RANK": str(index), "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.3"}
    done = subprocess.run(["bash", "-c", content["run"]], capture_output=True, env=os.environ | environment)
    args = understood(done.stdout)
    assert args.local_addr == ["10.0.0.5", "10.0.0.3"][index]
    check_agent(args, endpoint="10.0.0.5:29400", is_host=index == 0, folder="/runs/run_1")


# ---------------------------------------------------------------- what is asked of clusters


def test_the_header_of_an_sbatch_script():
    job = dataclasses.replace(JOB, gpus_per_node=4, gpu_type="a100", memory_gb_per_node=64, workdir="/a b", grace_s=60)
    text = slurm.script(job, time="1-0", partition="gpu", options=["--account=me"], sweep=[["seed=0"], ["seed=1"]])
    header = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert header == [
        "--job-name=run-1",
        "--array=0-1",
        "--partition=gpu",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--gpus-per-node=a100:4",
        "--mem=64G",
        "--time=1-0",
        "--chdir=/a b",
        "--output=runs/run_1_%a.log",
        "--open-mode=append",
        "--signal=TERM@90",
        "--requeue",
        "--account=me",
    ]


def test_kubernetes_replaces_pods_and_gives_them_what_they_ask_for():
    job = dataclasses.replace(MOUNTED, gpus_per_node=4, memory_gb_per_node=64)
    service, batch_job = kubernetes.manifests(
        job, image="i", claim="c", namespace="rl", node_selector=["cloud.google.com/gke-nodepool=gpu"]
    )
    assert service["spec"]["selector"] == {"job-name": batch_job["metadata"]["name"]}
    spec = batch_job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (2, 2, 6)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-nodepool": "gpu"}
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"nvidia.com/gpu": "4"},
    }
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_kubernetes_schemas_take_the_manifests_and_nothing_wrong():
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for job in (MOUNTED, dataclasses.replace(MOUNTED, cpus_per_node=None, num_nodes=1, workdir="/opt/rlsurreal")):
        documents = kubernetes.manifests(job, image="i", claim="c")
        assert "strict schemas" in kubernetes.check(documents)
    documents[1]["spec"]["completion"] = 2
    with pytest.raises(ValueError, match=r"Job run-1: .*completion"):
        kubernetes.check(documents)


@pytest.mark.processes
def test_skypilot_parses_the_task_and_nothing_wrong(tmp_path, monkeypatch):
    if skypilot.find_sky() is None:
        pytest.skip("SkyPilot is not installed: its command sky is not on the PATH")
    monkeypatch.setenv("HOME", str(tmp_path))  # where it writes
    job = dataclasses.replace(MOUNTED, gpus_per_node=8, gpu_type="H100", memory_gb_per_node=64)
    contents = [
        skypilot.task(job, runs="s3://bucket", infra=["aws", "ssh/pool"], spot=True),
        skypilot.task(MOUNTED, runs="a-volume", infra=["k8s/context"], image="docker:a/b:1"),
    ]
    for content in contents:
        assert "own parser" in skypilot.check(content)
    contents[0]["resources"]["acelerators"] = "H100:8"
    with pytest.raises(ValueError, match="acelerators"):
        skypilot.check(contents[0])


def test_yaml_says_what_was_written():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    content = {
        "text": ["one", "two\nlines\n", "no end\nof line", "", "\n", "ends\n\n", " begins\nwith blanks", "tab\tin\nit"],
        "words": {"no": "yes", "1": "1.0", "a: b": "# c", "/dev/shm": 'it\'s "é" \\ \U0001f600'},
        "script": "if a; then\n    b # c: d\n\nfi\n",
        "others": [1, 2.5, True, None, [], {}, [["nested", {"more": ["a\nb\n"]}]]],
    }
    assert yaml.safe_load(to_yaml(content)) == content


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/ppo_HalfCheetah-v5_0", "ppo-halfcheetah-v5-0"),
        ("/a/3_x", "run-3-x"),
        ("x" * 49 + "_1", "x" * 49),
    ],
)
def test_jobs_are_named_after_their_folder(folder, name):
    assert name_of_folder(folder) == name
    dataclasses.replace(JOB, name=name)


# ---------------------------------------------------------------- the command line

SLURM = ["slurm", "debug", "--cpus", "2"]
KUBERNETES = ["kubernetes", "debug", "--image", "i", "--claim", "c"]
SKYPILOT = ["skypilot", "debug", "--runs", "s3://bucket"]
HOSTS = ["hosts", "debug", "--hosts", "a,b"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["slurm", "debugg", "--cpus", "2"], "there is no recipe 'debugg'"),
        (["slurm", "debug", "algo.num_epochs=0", "--cpus", "2"], "num_epochs is 0; it must be at least 1"),
        ([*SLURM, "--sweep", "algo.num_epochs=1,0"], "num_epochs is 0"),
        ([*SLURM, "--sweep", "device=cpu,cuda"], "each needs one: --gpus 1"),
        ([*SLURM, "--ranks-per-node", "4", "--sweep", "sampler.batch.num_envs=4,2"], "num_envs"),
        (["slurm", "debug", "ranks=4", "--cpus", "4"], "ranks is 4, and ranks are started from outside; use --ranks"),
        (["slurm", "debug", "seed=1", "--cpus", "2", "--sweep", "seed=1,2"], "seed is given twice"),
        ([*SLURM, "--nodes", "0"], "num_nodes is 0; it must be at least 1"),
        ([*SLURM, "--cpus", "0"], "cpus_per_node is 0"),
        ([*SLURM, "--nodes", "1000"], "num_envs"),
        ([*SLURM, "--gpus", "many"], "--gpus is 'many'; write a number, or TYPE:NUMBER"),
        ([*SLURM, "--gpus", "2"], "device is 'cpu', so GPUs would be idle; add device=cuda"),
        (["slurm", "debug", "device=cuda", "--cpus", "2"], "each needs one: --gpus 1"),
        ([*SLURM, "--sbatch", "account=me"], "write it whole: --account=name"),
        ([*SLURM, "--folder", "runs/a b"], "folder is 'runs/a b'; use letters, digits"),
        ([*SLURM, "--name", "Me"], "name is 'Me'; use up to 50 small letters"),
        ([*KUBERNETES, "--folder", "runs/a"], "use /runs/NAME"),
        ([*KUBERNETES, "--node-selector", "gpu"], "node_selector has 'gpu'; write label=value"),
        (["kubernetes", "debug", "device=cuda", *KUBERNETES[2:], "--gpus", "H100:1"], "--node-selector"),
        ([*SKYPILOT, "--folder", "runs/a"], "use /runs/NAME"),
        (["skypilot", "debug", "device=cuda", *SKYPILOT[2:], "--gpus", "1"], "gpu_type is not given"),
        (["hosts", "debug", "--hosts", "a,a"], "give each host once"),
        ([*HOSTS, "--env", "1A"], "env has '1A'; write NAME=value"),
        ([*HOSTS, "--port", "80"], "port is 80; choose one from 1024"),
        ([*HOSTS, "--ssh", "/no/such/ssh"], "cannot run '/no/such/ssh'"),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_fix(words, complaint, capsys):
    assert submit.main(words) == 2
    output = capsys.readouterr()
    assert complaint in output.err and output.out == ""


@pytest.mark.parametrize("backend", ["hosts", "slurm", "kubernetes", "skypilot"])
def test_help(backend, capsys):
    with pytest.raises(SystemExit) as end:
        submit.main([backend, "--help"])
    assert end.value.code == 0
    assert "--dry-run" in capsys.readouterr().out


def test_an_argument_without_a_default_may_come_from_the_sweep(capsys, monkeypatch):
    monkeypatch.setattr(train, "find_recipe", lambda name: lambda env_id: recipes.ppo_mujoco(env_id))
    assert submit.main(["slurm", "r", "--cpus", "2", "--sweep", "env_id=Hopper-v5,Ant-v5", "--dry-run"]) == 0
    assert "env_id=Ant-v5" in capsys.readouterr().out


def test_limits_of_time_are_read_as_slurm_does():
    read = slurm.seconds_of
    assert [read(text) for text in ("90", "2:30", "1:02:03", "2-12", "1-01:30", "1-00:00:01")] == [
        5_400, 150, 3_723, 216_000, 91_800, 86_401,
    ]  # fmt: skip
    assert read("UNLIMITED") is None and read("1-") is None


def test_a_limit_of_time_that_leaves_no_time_is_refused(capsys):
    assert submit.main([*SLURM, "--time", "2", "--dry-run"]) == 2  # meant as hours
    assert "--time is '2', 120 seconds (a number alone is minutes)" in capsys.readouterr().err
    assert submit.main([*SLURM, "--time", "2:00:00", "--dry-run"]) == 0


def test_environments_are_looked_for_before_anything_is_submitted(capsys):
    words = ["ppo_mujoco", "env_id=HalfChetah-v5", "--dry-run"]
    assert submit.main(["slurm", *words, "--cpus", "2"]) == 2
    assert "sampler.env cannot be found: " in capsys.readouterr().err
    elsewhere = KUBERNETES[: KUBERNETES.index("kubernetes") + 1] + words
    assert "debug" in KUBERNETES
    assert submit.main([*elsewhere, *KUBERNETES[KUBERNETES.index("debug") + 1 :]]) == 0
    assert "as seen from here, sampler.env cannot be found: " in capsys.readouterr().err


def test_values_in_brackets_stay_whole_and_are_not_given_twice():
    assert submit.product(["sizes=(64,64)"]) == [["sizes=(64,64)"]]
    assert submit.product(["sizes=(64,64),(32,32)"]) == [["sizes=(64,64)"], ["sizes=(32,32)"]]
    with pytest.raises(ValueError, match="--sweep has a value of seed twice: 1, 2, 1"):
        submit.product(["seed=1,2,1"])


def test_a_sweep_is_the_product_of_its_values():
    assert submit.product(["seed=0,1", "sizes=(1,2),(3,4)"]) == [
        ["seed=0", "sizes=(1,2)"],
        ["seed=0", "sizes=(3,4)"],
        ["seed=1", "sizes=(1,2)"],
        ["seed=1", "sizes=(3,4)"],
    ]


@pytest.mark.parametrize(
    ("words", "program", "submitted", "says"),
    [
        ([*SLURM, "--sweep", "seed=0,1"], "sbatch", "--parsable", "scancel 17"),
        ([*KUBERNETES, "--namespace", "rl"], "kubectl", "create -f -", "kubectl --namespace rl delete job,service x-1"),
        ([*SKYPILOT, "--pool", "p"], "sky", "jobs launch --yes --detach-run --pool p", "sky jobs cancel --name x-1"),
    ],
)
def test_dry_run_prints_exactly_what_is_submitted(programs, tmp_path, capsys, words, program, submitted, says):
    # The stand-ins keep what they are given: Slurm and Kubernetes as input, SkyPilot as a file, named last.
    for name in ("sbatch", "kubectl", "sky"):
        programs(
            name,
            f'#!/bin/bash\necho "$@" >> {tmp_path}/{name}.words\necho "{name}: lua: hello" >&2\necho "17;here"\n'
            f'[ -f "${{@: -1}}" ] && cp "${{@: -1}}" {tmp_path}/{name}.text || cat > {tmp_path}/{name}.text',
        )
    programs("python", "#!/bin/sh\n")  # beside sky: parses everything
    words = [*words, "--folder", f"{'/runs' if program != 'sbatch' else tmp_path / 'new'}/x_1"]
    assert submit.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    asked = (tmp_path / f"{program}.words").read_text() if (tmp_path / f"{program}.words").exists() else ""
    assert submitted not in asked, "a dry run submits nothing"
    assert submit.main(words) == 0
    assert submitted in (tmp_path / f"{program}.words").read_text()
    assert (tmp_path / f"{program}.text").read_text() == printed
    assert says in capsys.readouterr().out


def test_the_commands_of_the_documentation(programs, tmp_path, monkeypatch, capsys):
    programs("sbatch", "#!/bin/sh\n")
    monkeypatch.setenv("HOME", str(tmp_path))  # where SkyPilot writes
    text = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
    lines = [
        line for line in text.splitlines() if line.startswith("python launchers/submit.py") and "BACKEND" not in line
    ]
    assert len(lines) == 6
    for line in lines:
        assert submit.main([*shlex.split(line)[2:], "--dry-run"]) == 0, capsys.readouterr().err


def test_slurm_without_sbatch_is_said_so(monkeypatch, capsys):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert submit.main([*SLURM, "--dry-run"]) == 0
    assert "there is no sbatch here" in capsys.readouterr().err


def test_a_refusal_of_slurm_is_shown_and_nothing_is_submitted(programs, tmp_path, capsys):
    programs("sbatch", f'#!/bin/sh\necho "$@" >> {tmp_path}/words\necho "invalid partition specified: no"; exit 1')
    assert submit.main([*SLURM, "--partition", "no"]) == 2
    assert "invalid partition specified: no" in capsys.readouterr().err
    assert (tmp_path / "words").read_text() == "--test-only\n"


# ---------------------------------------------------------------- hosts, for real, with a stand-in for ssh

FAKE_SSH = """
import os, subprocess, sys, threading
# As ssh: the host's shell lives apart from this process, and knows of it by the connection alone.
remote = subprocess.Popen(
    ["sh", "-c", sys.argv[-1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
)
def send():
    while data := os.read(0, 4096):
        remote.stdin.write(data)
    remote.stdin.close()
threading.Thread(target=send, daemon=True).start()
for line in remote.stdout:
    sys.stdout.buffer.write(line)
    sys.stdout.flush()
sys.exit(remote.wait())
"""

# An agent on host "bad" fails after a second; others go on until they are told to stop, and save.
FAKE_AGENT = """#!/bin/bash
trap 'sleep 0.5; echo saved; touch "$PLACE/saved-$$"; exit 143' TERM
echo "at work"
touch "$PLACE/started-$$"
case "$*" in *"--local-addr bad "*) sleep 1; exit 7 ;; *"--local-addr done"*) exit 0 ;; esac
while :; do sleep 0.1; echo step; done
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with stand-ins for ssh and for the agents, which leave files here."""
    (tmp_path / "ssh.py").write_text(FAKE_SSH)
    (tmp_path / "agent").write_text(FAKE_AGENT)
    (tmp_path / "agent").chmod(0o755)
    monkeypatch.setenv("PLACE", str(tmp_path))
    yield tmp_path
    for child in psutil.Process().children():  # of a test that has failed
        if child.status() != psutil.STATUS_ZOMBIE and str(tmp_path) in " ".join(child.cmdline()):
            child.kill()
    wait_for(lambda: processes_of(tmp_path) == [], 10)


def command(place: Path, names: str, *more: str) -> list[str]:
    ssh = f"{sys.executable} {place / 'ssh.py'}"
    return [
        *[sys.executable, str(ROOT / "launchers" / "submit.py"), "hosts", "debug", "--hosts", names, "--ssh", ssh],
        *["--python", str(place / "agent"), "--folder", f"{place}/run", "--workdir", str(place), *more],
    ]


def processes_of(place: Path) -> list[str]:
    """Command lines of what still runs on the "hosts", or here for them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(place) in line and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def files(place: Path, kind: str) -> int:
    return len(list(place.glob(f"{kind}-*")))


@pytest.mark.processes
def test_one_host_fails_and_the_others_are_stopped_after_they_have_saved(place):
    done = subprocess.run(command(place, "good,bad,me@fine"), text=True, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert "bad failed with exit status 7; stopping the others" in done.stderr
    lines = done.stdout.splitlines()
    for line in ("good    | at work", "bad     | at work", "me@fine | at work", "good    | saved", "me@fine | saved"):
        assert line in lines, done.stdout
    assert "bad     | saved" not in lines
    assert processes_of(place) == []


@pytest.mark.processes
def test_all_hosts_end_well(place):
    done = subprocess.run(command(place, "done,done.too"), text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.count("at work")) == (0, 2), done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_submit_is_ended_nothing_remains_and_all_is_saved(place, number):
    process = subprocess.Popen(command(place, "a,b"), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: files(place, "started") == 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    wait_for(lambda: processes_of(place) == [], 10)
    assert files(place, "saved") == 2
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert f"{number.name}: stopping the hosts" in errors
        assert output.count("| saved") == 2


@pytest.mark.processes
def test_a_lost_connection_is_a_failure_and_ends_both_sides(place):
    process = subprocess.Popen(command(place, "a,b"), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: files(place, "started") == 2)
    ssh = [p for p in psutil.Process(process.pid).children() if p.cmdline()[-2] == "b"]
    ssh[0].kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "b failed: killed by SIGKILL; stopping the others" in errors
    wait_for(lambda: processes_of(place) == [], 10)
    assert files(place, "saved") == 2


@pytest.mark.processes
def test_who_reads_the_output_may_leave(place):
    process = subprocess.Popen(command(place, "a,b"), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: files(place, "started") == 2)
    process.stdout.close()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGPIPE
    assert "SIGPIPE: stopping the hosts" in errors and "Traceback" not in errors and "Exception" not in errors
    assert files(place, "saved") == 2


@pytest.mark.processes
def test_an_agent_that_does_not_stop_is_killed(place, monkeypatch, capfd):
    monkeypatch.setattr(hosts, "MARGIN_S", 1)
    (place / "agent").write_text('#!/bin/bash\ntrap "" TERM\necho "at work"\nwhile :; do sleep 0.1; done\n')
    job = dataclasses.replace(JOB, workdir=str(place), python=str(place / "agent"), grace_s=1)
    ssh = f"{sys.executable} {place / 'ssh.py'}"
    started = hosts.commands(job, ["a", "b"], ssh)
    started["b"] = [*shlex.split(ssh), "b", "exit 3"]
    began = time.monotonic()
    assert hosts.run(started, job.grace_s) == 1
    assert time.monotonic() - began < 10
    assert "b failed with exit status 3" in capfd.readouterr().err
    wait_for(lambda: processes_of(place) == [], 10)


@pytest.mark.processes
def test_two_hosts_train_as_one_and_go_on_in_the_same_folder(place):
    """Real agents and ranks, on two addresses of this machine."""

    def start(num_steps: int) -> subprocess.Popen:
        words = command(place, "127.0.0.1,localhost", "--python", sys.executable, "--workdir", str(ROOT))
        words[4:4] = [f"total_env_steps={num_steps}", "log_interval_steps=512", "compile=off"]
        return subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def progress() -> list[int]:
        path = place / "run" / "progress.csv"
        return [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]] if path.exists() else []

    process = start(10**9)
    wait_for(lambda: len(progress()) > 2, 60)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    (checkpoint,) = (place / "run" / "checkpoints").glob("checkpoint_*.pt")
    saved = int(checkpoint.stem.rpartition("_")[2])
    assert saved >= progress()[-1]

    process = start(saved + 2048)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "resumed after" in (place / "run" / "log.txt").read_text()
    assert progress() == sorted(set(progress())) and progress()[-1] >= saved + 2048
