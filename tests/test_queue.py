"""launch/queue.sh with a recording stand-in for the training command: turns, pausing, stopping, going on."""

import os
import pathlib
import stat
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Trains a "run": notes its arguments, then counts images up to --config.train.images, one hundred every 50 ms.
STAND_IN = """#!/usr/bin/env bash
for word in "$@"; do case "$word" in
    --workdir=*) workdir="${word#*=}" ;;
    --config.train.images=*) images="${word#*=}" ;;
esac; done
echo "$@" >> "$RECORD"
case "$*" in *fails*) exit 2 ;; esac
trap 'echo stopped >> "$RECORD"; exit 143' TERM
seen="$(tail -n 1 "$workdir/metrics.jsonl" 2>/dev/null | tr -dc 0-9)"
while [ "${seen:-0}" -lt "$images" ]; do
    sleep 0.05
    seen=$((${seen:-0} + 100))
    echo "{\\"images\\": $seen}" >> "$workdir/metrics.jsonl"
done
"""


@pytest.fixture
def queue(tmp_path):
    """(call, record): `call(arguments)` runs the script, with the stand-in as the python of its environment."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(STAND_IN)
    (venv / "bin" / "python").chmod(0o755 | stat.S_IXUSR)
    stamp = subprocess.run("cat setup.cfg pyproject.toml | cksum | tr ' ' '-'", shell=True, cwd=ROOT, text=True,
                           capture_output=True).stdout  # fmt: skip
    (venv / "stamp").write_text(stamp)
    record = tmp_path / "record"
    env = os.environ | {"PFGM_JAX_VENV": str(venv), "PFGM_JAX_QUEUE": str(tmp_path / "state"), "RECORD": str(record)}

    def call(*arguments):
        command = ["bash", str(ROOT / "launch" / "queue.sh"), *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=30)

    yield call, record
    call("resume")
    call("stop")


def until(condition):
    end = time.monotonic() + 120  # the queue has the lowest priority, and a busy machine little time for it
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def images(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) * 100 if path.exists() else 0


def test_runs_take_turns_and_a_failure_holds_up_nothing(queue, tmp_path):
    call, record = queue
    a, b = tmp_path / "a", tmp_path / "b"
    list_ = tmp_path / "list"
    list_.write_text(f"""# two runs in turns
{a} 200 --config=one
{b} 200 --config=two
{tmp_path}/c 100 --config=fails
{a} 300 --config=one --config.seed=1  # with a word of its own
""")
    assert call("start", "list").returncode == 0
    until(lambda: "the list is done" in (tmp_path / "state" / "log").read_text())
    calls = [line.split()[2:] for line in record.read_text().splitlines()]
    assert calls == [
        [f"--workdir={a}", "--config=one", "--config.train.images=200"],
        [f"--workdir={b}", "--config=two", "--config.train.images=200"],
        [f"--workdir={tmp_path}/c", "--config=fails", "--config.train.images=100"],
        [f"--workdir={a}", "--config=one", "--config.seed=1", "--config.train.images=300"],
    ]
    assert images(a) == 300 and images(b) == 200
    log = (tmp_path / "state" / "log").read_text()
    assert f"{tmp_path}/c: exit code 2" in log
    until(lambda: call("status").stdout.startswith("not running"))
    assert call("status").stdout.splitlines()[1].split() == ["300", "of", "200", str(a)]


def test_paused_stopped_and_started_again(queue, tmp_path):
    call, record = queue
    run, list_ = tmp_path / "run", tmp_path / "list"
    list_.write_text(f"{run} 100000 --config=one\n")
    assert call("start", "list").returncode == 0
    second = call("start", "list")
    assert second.returncode == 2 and "running already" in second.stderr
    until(lambda: images(run) > 0)
    assert call("status").stdout.startswith("running")
    assert call("pause").returncode == 0
    held = images(run)
    time.sleep(0.5)
    assert images(run) <= held + 100 and call("status").stdout.startswith("paused")
    assert call("resume").returncode == 0
    until(lambda: images(run) > held + 100)
    call("pause")  # a queue that is paused can be stopped too
    assert call("stop").returncode == 0
    assert record.read_text().splitlines()[-1] == "stopped"  # the run had the time to save
    before = images(run)
    assert call("start", "list").returncode == 0
    until(lambda: images(run) > before)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["pause"], "no queue is running"),
        (["status"], "no queue yet"),
        (["start"], "which list"),
        (["start", "bad"], "no line of a queue: 'runs/a many --config=x'"),
        (["start", "empty"], "empty names no run; write WORKDIR IMAGES ARGUMENTS"),
        (["start", "."], "which list"),
        (["begin"], "launch/queue.sh start LIST"),
    ],
)
def test_what_it_cannot_do_is_told(queue, tmp_path, arguments, text):
    call, _ = queue
    (tmp_path / "bad").write_text("runs/a many --config=x\n")
    (tmp_path / "empty").write_text("# nothing yet\n\n")
    done = call(*arguments)
    assert done.returncode == 2 and text in done.stderr
