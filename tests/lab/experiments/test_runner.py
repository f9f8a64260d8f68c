"""Results that are kept, sweeps that go on, and processes that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from atomic import write_json
from experiments.runner import Failure, Run, made, run_once, sweep
from experiments.workloads import make_workload
from glue.errors import UsageError

from .fakes import Fake, counted, interrupted_when

SETTINGS = {"lr": 1e-3}


def test_a_result_that_is_there_is_not_made_again(tmp_path):
    workload = Fake(data_dir=str(tmp_path))
    first = run_once(Run(workload, "adamw", SETTINGS, 7), tmp_path / "root")
    again = run_once(Run(workload, "adamw", SETTINGS, 7), tmp_path / "root")
    assert first == again and counted(tmp_path) == ["7"]
    (path,) = (tmp_path / "root" / "fake" / "adamw").iterdir()
    assert path == Run(workload, "adamw", SETTINGS, 7).path(tmp_path / "root")
    assert path.name.endswith("-7.json") and json.loads(path.read_text()) == first
    assert first["settings"] == {
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
    }


def test_each_setting_contender_seed_and_budget_has_its_own_file(tmp_path):
    runs = [
        Run(Fake(), "adamw", SETTINGS, 0),
        Run(Fake(), "adamw", SETTINGS, 1),
        Run(Fake(), "adam", SETTINGS, 0),
        Run(Fake(), "adamw", {"lr": 2e-3}, 0),
        Run(Fake(), "adamw", SETTINGS | {"schedule": "linear"}, 0),
        Run(Fake(steps=11), "adamw", SETTINGS, 0),
    ]
    assert len({run.path(tmp_path) for run in runs}) == len(runs)
    same = Run(Fake(data_dir="elsewhere"), "adamw", SETTINGS | {"schedule": "constant"}, 0)
    assert same.path(tmp_path) == runs[0].path(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments import recording, training
from experiments.runner import Run, run_once
from experiments.workloads import make_workload
from glue.checkpoints import checkpoints, steps_done

name, data_dir, contender, options, *runs = sys.argv[1:]
training.SAVE_STEPS, took = 4, recording.Recorder.step
run = Run(make_workload(name, data_dir or None, **eval(options)), contender, {"lr": 1e-3}, 3)

for root, end in zip(runs[::2], map(int, runs[1::2])):
    def step(self, loss, optimizer):
        if len(self.losses) == end:
            os.kill(os.getpid(), signal.SIGKILL)
        return took(self, loss, optimizer)

    recording.Recorder.step = step
    if not (child := os.fork()):  # each run has a process of its own, which has imported all
        run_once(run, Path(root))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = run.path(Path(root)).with_suffix(".unfinished")
    print("END", status, left.exists(), *map(steps_done, checkpoints(left)), flush=True)
"""


@pytest.mark.parametrize(
    ("name", "contender"),
    [
        ("cifar10-short", "dwmgrad-finetune"),  # random crops, batch norms
        pytest.param("cifar10-short", "schedule-free-adamw", marks=pytest.mark.slow),
        pytest.param("tiny-sst2", "dwmgrad-finetune", marks=pytest.mark.slow),  # dropout
        pytest.param("tiny-sst2", "adamw", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_from_its_last_checkpoint(name, contender, images_dir, tmp_path):
    if contender.startswith("schedule-free"):
        pytest.importorskip("schedulefree")
    data_dir, options = {
        "cifar10-short": (str(images_dir), {"steps": 12, "depth": 8, "batch_size": 8}),
        "tiny-sst2": (
            "",
            {"steps": 12, "batch_size": 8, "train_examples": 40, "eval_examples": 16},
        ),
    }[name]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = [name, data_dir, contender, repr(options)]
    words += [str(word) for word in (killed, 7, killed, 10, killed, -1, whole, -1)]
    told = subprocess.run([sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE, text=True)
    ends = [line for line in told.stdout.splitlines() if line.startswith("END")]
    assert ends == ["END -9 True 4", "END -9 True 8", "END 0 False", "END 0 False"]
    run = Run(make_workload(name, data_dir or None, **options), contender, {"lr": 1e-3}, 3)
    one, other = (json.loads(run.path(root).read_text()) for root in (whole, killed))
    assert one.pop("seconds") > 0 and other.pop("seconds") > 0
    assert other == one and one["steps"] == 12


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_file_that_is_no_result_is_told(content, tmp_path):
    path = Run(Fake(), "adamw", SETTINGS, 0).path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UsageError, match="remove it to run again"):
        run_once(Run(Fake(), "adamw", SETTINGS, 0), tmp_path)


def test_a_value_that_json_does_not_know_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "result.json", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_makes_what_is_missing_in_order_and_once(tmp_path):
    workload, root = Fake(data_dir=str(tmp_path)), tmp_path / "root"
    run_once(Run(workload, "adamw", SETTINGS, 1), root)
    runs = [Run(workload, "adamw", SETTINGS, seed) for seed in (3, 1, 2, 3)]
    assert not sweep(runs, root)
    results = made(runs, root)
    assert [result["score"] for result in results] == [3, 1, 2, 3]
    assert counted(tmp_path) == ["1", "2", "3"]
    assert results[0]["threads"] == "1" and os.environ.get("TOKENIZERS_PARALLELISM") != "1"
    assert "printed by a run" in (root / "workers.log").read_text()
    assert not sweep(runs, root) and made(runs, root) == results  # and starts no process
    assert counted(tmp_path) == ["1", "2", "3"]


def test_runs_that_fail_cost_the_others_nothing(tmp_path, capsys):
    endings = {"error": "RuntimeError: seed 1 fails", "exit": "SystemExit: 3", "killed": "signal 9"}
    runs = [
        Run(
            Fake(name=name, data_dir=str(tmp_path), ending=name, ends_so_from=1),
            "adamw",
            SETTINGS,
            seed,
        )
        for name in endings
        for seed in (0, 1)
    ]
    runs.append(Run(Fake(data_dir=str(tmp_path)), "adamw", SETTINGS, 8))
    failures = sweep(runs, tmp_path / "root", processes=1)
    assert [result["score"] for result in made(runs, tmp_path / "root")] == [0, 0, 0, 8]
    shown = capsys.readouterr().err
    for failure, (name, error) in zip(failures, endings.items(), strict=True):
        assert failure.run.workload.name == name and failure.run.seed == 1
        assert error in failure.error and "\n" not in failure.error
        assert f"failed: {name}, adamw (lr 0.001), seed 1: {failure.error}" in shown
    log = (tmp_path / "root" / "workers.log").read_text()
    assert failures[0].log.read_text() == log and "in run\n" in log and "SystemExit: 3" in log
    assert "7/7" in shown
    sweep(runs[:2], tmp_path / "root", processes=1)
    assert counted(tmp_path) == ["0", "0", "0", "1", "1", "1", "1", "8"]  # one was tried again


def test_mistakes_are_found_before_any_process_starts(tmp_path, cora_dir):
    from experiments.workloads import make_workload

    good = Fake(data_dir=str(tmp_path))
    for wrong in (
        Run(good, "adamw", {"lr": -1}, 0),
        Run(make_workload("cora", str(tmp_path)), "adamw", SETTINGS, 0),
    ):
        with pytest.raises(UsageError):
            sweep([Run(good, "adamw", SETTINGS, 0), wrong], tmp_path / "root")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        sweep([Run(good, "adamw", SETTINGS, 0)], tmp_path / "file" / "root")
    assert counted(tmp_path) == []


def test_a_process_gives_the_numbers_that_this_one_gives(cora_dir, tmp_path):
    """Also as the second run of its process."""
    from experiments.workloads import make_workload

    workload = make_workload("cora", str(cora_dir), steps=10)
    runs = [Run(workload, "dwmgrad-decrease", {"lr": 1e-2}, seed) for seed in (0, 1)]
    assert not sweep(runs, tmp_path / "there", processes=1)
    for run, result in zip(runs, made(runs, tmp_path / "there"), strict=True):
        here = run_once(run, tmp_path / "here")
        for key in ("score", "train_loss", "history"):
            assert here[key] == result[key]


SWEEP = """
from lab.experiments.fakes import Fake
from experiments.runner import Run, sweep
from glue.errors import run_cli
work = Fake(data_dir={folder!r}, ending="sleep", ends_so_from=2)
runs = [Run(work, "adamw", {{"lr": 1e-3}}, seed) for seed in (0, 1, 2, 3)]
if __name__ == "__main__":
    run_cli(lambda: sweep(runs, {folder!r} + "/root"))
"""


def test_ctrl_c_ends_all_and_keeps_what_is_done(tmp_path):
    process = _sweeping(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the children, too
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 130 and shown.rstrip().endswith("interrupted")
    assert len(list((tmp_path / "root" / "fake" / "adamw").glob("*.json"))) == 2
    _wait_until(lambda: not _alive(process.pid))  # nobody of the session is left


def test_after_ctrl_c_the_caller_knows_what_failed(tmp_path):
    fails = Fake(data_dir=str(tmp_path), ending="error")
    sleeps = Fake(name="sleeps", data_dir=str(tmp_path), ending="sleep")
    runs = [Run(fails, "adamw", SETTINGS, 0), Run(sleeps, "adamw", SETTINGS, 1)]
    failures: list[Failure] = []
    with interrupted_when(lambda: counted(tmp_path) == ["0", "1"]):
        sweep(runs, tmp_path / "root", 1, failures)
    assert [failure.error for failure in failures] == ["RuntimeError: seed 0 fails"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_killed_leaves_no_process_behind(number, tmp_path):
    process = _sweeping(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=20)
    _wait_until(lambda: not _alive(process.pid))


def _sweeping(folder: Path) -> subprocess.Popen[str]:
    """A sweep, in a session of its own, that has made two runs, while two others sleep."""
    (folder / "run.py").write_text(SWEEP.format(folder=str(folder)))
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(folder / "run.py")],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_until(lambda: counted(folder) == ["0", "1", "2", "3"] or process.poll() is not None)
    assert process.poll() is None
    return process


def _wait_until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def _alive(session: int) -> bool:
    command = ["ps", "-o", "stat=", "-s", str(session)]
    states = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in states)
