"""One run at a time in a folder, until its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from glue.errors import UsageError
from glue.lock import exclusive

from .conftest import ROOT

HOLD = """
import os, sys, time
from pathlib import Path
from glue.lock import exclusive
with exclusive(Path(sys.argv[1])):
    if os.fork() == 0:  # as a data loader's worker, which outlives a parent that is killed
        print("holds", flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder `out`, and has a child."""
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"holds\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def words(argv):
    return [*argv, "--task_name", "sst2", "--use_sample", "--do_eval", "--max_eval_samples", "4"]


def test_a_folder_in_use_is_refused_until_its_process_is_killed(script, words, holder, tmp_path):
    out = tmp_path / "out"
    who = f"process {holder.pid} on {socket.gethostname()}, since 20"
    for more in ([], ["--do_train", "--overwrite_output_dir"]):
        with pytest.raises(UsageError, match=f"a run is at work there .{who}.*another folder"):
            script([*words, *more])
    assert [path.name for path in out.iterdir()] == ["_lock"]
    holder.kill()
    holder.wait()  # its child is still there
    script(words)
    assert not (out / "_lock").exists() and (out / "all_results.json").exists()


def test_the_lock_goes_with_the_run(script, words, tmp_path):
    script(words)
    with pytest.raises(UsageError, match="task"):
        script([*words, "--task_name", "rte"])  # fails while it holds the folder
    assert not (tmp_path / "out" / "_lock").exists()
    script(words)
    (tmp_path / "out" / "_lock").write_text("left by a killed one")
    script(words)


def test_of_many_at_once_one_gets_the_folder(tmp_path):
    """Leaving removes the file, which must not let two in."""
    inside, most, got, end = [], [0], [0], time.monotonic() + 1

    def contend() -> None:
        while time.monotonic() < end:
            try:
                with exclusive(tmp_path):
                    inside.append(1)
                    most[0] = max(most[0], len(inside))
                    got[0] += 1
                    time.sleep(0.0002)
                    inside.pop()
            except UsageError:
                pass

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and got[0] > 20


def test_a_file_system_that_cannot_lock_costs_a_warning(tmp_path, monkeypatch, caplog):
    def unable(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    with exclusive(tmp_path):
        pass
    assert "cannot lock (No locks available)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_glue", "run_glue_no_trainer"])
def test_all_ranks_of_a_second_launch_are_refused(name, words, holder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    script = [str(ROOT / "scripts" / f"{name}.py"), *words, "--ddp_backend", "gloo"]
    done = subprocess.run([*command, "2", *script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count(f"{name}.py: error: --output_dir") == 2
