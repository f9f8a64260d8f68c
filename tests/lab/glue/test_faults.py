"""Kills, full disks and read-only folders: the last whole checkpoint is found, the end is equal."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from glue.checkpoints import checkpoints
from glue.errors import UsageError
from glue.output import clear_write_errors
from safetensors.torch import load_file, save_file

from ..conftest import load_script
from .conftest import ROOT, read_json


def test_killed_runs_end_as_if_they_had_not_been(tmp_path):
    """The short form of the script's 50 kills: each script, alone and with one rank of two gone."""
    command = [sys.executable, str(ROOT / "scripts" / "fault_run.py"), "--kills", "4"]
    command += ["--folder", str(tmp_path / "runs"), "--output", str(tmp_path / "faults.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = read_json(tmp_path / "faults.json")
    assert figures["kills"] == figures["equal_ends"] == 4


def test_fewer_kills_than_asked_for_are_no_success(tmp_path, monkeypatch):
    script = load_script("fault_run")
    for done, code in ((1, 0), (0, 1)):
        counts = {"kills": done, "inside_checkpoint_writing": 0, "equal_ends": done}
        monkeypatch.setattr(script._Case, "run", lambda *_, counts=counts: counts)
        words = ["fault_run.py", "--kills", "1", "--folder", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            script.check()
        assert ended.value.code == code


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options], capture_output=True).returncode == 0

    try:
        if not mount("-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)):
            pytest.skip("only root may mount a disk")
    except FileNotFoundError:
        pytest.skip("no mount command here")
    yield folder, lambda options: mount("-o", f"remount,{options}", str(folder))
    mount("-o", "remount,rw", str(folder))
    # lazily: after a full disk, pyarrow may have a file open until it is collected
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def words(argv):
    return [
        *argv,
        *"--task_name sst2 --use_sample --max_train_samples 24 --do_train".split(),
        *"--save_strategy steps --save_steps 1 --logging_steps 1".split(),
    ]


def test_a_full_disk_costs_nothing_but_the_steps_since(script, words, disk, tmp_path):
    folder, remount = disk
    full = [*words, "--output_dir", str(folder / "out")]
    with pytest.raises(
        UsageError, match=r"writing failed, with 0.* MiB free .* from checkpoint-1$"
    ):
        script(full)
    assert [path.name for path in checkpoints(folder / "out")] == ["checkpoint-1"]
    assert remount("size=100m")
    script(full)
    script(words)
    ours, whole = (load_file(f / "model.safetensors") for f in (folder / "out", tmp_path / "out"))
    assert all(ours[name].equal(whole[name]) for name in whole)


def test_tokenized_data_that_does_not_fit_on_the_disk(script, words, disk, caplog):
    folder, remount = disk
    assert remount("size=16k")
    many = ["--max_train_samples", "2000", "--max_steps", "1"]
    script([*words, *many, "--cache_dir", str(folder)])
    assert f"--cache_dir: {folder}/dwmgrad-glue/" in caplog.text and "No space left" in caplog.text


def test_a_disk_that_turns_read_only(script, words, disk):
    folder, remount = disk
    remount("size=100m")
    full = [*words, "--num_train_epochs", "20", "--output_dir", str(folder / "out")]

    def turn() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if checkpoints(folder / "out") and remount("ro"):  # it is busy while a file is written
                return
            time.sleep(0.02)

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    with pytest.raises(UsageError, match=r"writing failed.*goes on from checkpoint-\d+$"):
        script(full)
    thread.join()
    last = checkpoints(folder / "out")[-1]
    with pytest.raises(UsageError, match="cannot be written: Read-only file system"):
        script(full)
    assert remount("rw")
    script(
        [
            *full,
            "--max_steps",
            str(int(last.name.split("-")[1]) + 1),
            "--resume_from_checkpoint",
            str(last),
        ]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize(
    "save",
    [
        lambda tensor, path: torch.save(tensor, path),
        lambda tensor, path: save_file({"a": tensor}, path),
        lambda tensor, path: path.write_bytes(tensor.numpy().tobytes()),
    ],
    ids=["torch", "safetensors", "bytes"],
)
def test_a_file_that_does_not_fit_is_told_though_others_would(save, tmp_path):
    """What was half written may be gone by then, so that there is room again."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(UsageError, match="writing failed, with .* free"),
        clear_write_errors(tmp_path),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, before[1]))
        try:
            save(torch.zeros(2**20), tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_other_errors_stay_what_they_are(tmp_path):
    (tmp_path / "file").write_bytes(b"no checkpoint")
    with pytest.raises(Exception, match=r"(?i)load|pickle"), clear_write_errors(tmp_path):
        torch.load(tmp_path / "file", weights_only=True)


def test_a_folder_that_cannot_be_written_is_told_at_once(script, words):
    with pytest.raises(UsageError, match="--output_dir /proc/none: cannot be written"):
        script([*words, "--output_dir", "/proc/none"])
    assert not Path("/proc/none").exists()
