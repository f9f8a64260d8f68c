"""scripts/demo.py's way to run its command: where paths count from, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT

CODE = "import environment, sys; environment.run(sys.argv[1:], environment.Path.cwd())"


def start(code: str, folder: Path, by: str = CODE) -> subprocess.Popen:
    words = [sys.executable, "-c", by, sys.executable, "-c", code]
    path = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.Popen(words, cwd=folder, env=path, stdout=subprocess.PIPE, text=True)


def test_paths_count_from_where_the_user_is(tmp_path):
    made = start("open('here', 'w').close()", tmp_path)
    assert made.wait(60) == 0 and (tmp_path / "here").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(
    ("number", "ends", "code"),
    [(signal.SIGTERM, "sys.exit(3)", 3), (signal.SIGTERM, "os._exit(0)", 0)],
)
def test_a_signal_reaches_the_command_which_ends_in_its_own_way(tmp_path, number, ends, code):
    handler = f"signal.signal(signal.SIGTERM, lambda *_: (open('got', 'w').close(), {ends}))"
    waits = f"import os, signal, sys, time; {handler}; open('ready', 'w').close(); time.sleep(60)"
    process = start(waits, tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code
    assert (tmp_path / "got").is_file()


def test_a_command_that_a_signal_killed_has_its_number(tmp_path):
    process = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert process.wait(60) == 137


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_sigterm_ends_an_installation_too(tmp_path):
    ready = tmp_path / "ready"
    waits = f"import os, time; open({str(ready)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    by = "import environment, sys; environment._run(sys.argv[1:], 'the remedy')"
    process = start(waits, tmp_path, by)
    while not (ready.exists() and ready.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.read_text()), 0)


def test_help_installs_nothing(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("demo.py", "environment.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    words = [sys.executable, str(tmp_path / "scripts" / "demo.py"), "--help"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "makes a virtual environment first" in told and "docs/scripts.md" in told
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]
