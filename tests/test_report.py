"""The picture of a run, from its logs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dwmgrad
from dwmgrad.report import plot_run


def write_run(folder: Path, history: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def history(steps: int, **more: float) -> list[dict]:
    logs = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, **more} for s in range(1, steps)]
    return [*logs, {"step": steps, "eval_loss": 0.5}, {"step": steps, "train_runtime": 1.0}]


def height(path: Path) -> int:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[20:24], "big")


def test_a_run_of_dwmgrad_has_four_curves_and_another_ones_two(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "a", history(20, window=5, effective_momentum=0.4))
    theirs = write_run(tmp_path / "b", history(20))
    assert plot_run(ours) == ours / "window.png"
    assert height(plot_run(ours)) > 1.5 * height(plot_run(theirs, tmp_path / "x.png"))


def test_the_last_checkpoint_stands_in_for_an_unfinished_run(tmp_path: Path) -> None:
    write_run(tmp_path / "checkpoint-100", history(100, window=5, effective_momentum=0.4))
    for name in ("20", "3", "best"):  # files that are newer, as after a copy
        write_run(tmp_path / f"checkpoint-{name}", history(3))
    assert plot_run(tmp_path) == tmp_path / "window.png"
    few = plot_run(tmp_path / "checkpoint-3", tmp_path / "few.png")
    assert height(tmp_path / "window.png") > 1.5 * height(few)


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no trainer_state.json"):
        plot_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="none: there is no such folder"):
        plot_run(tmp_path / "none")
    with pytest.raises(ValueError, match="logged no loss"):
        plot_run(write_run(tmp_path, [{"step": 1, "eval_loss": 1.0}]))


@pytest.mark.hosts
def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dwmgrad.report"]
    run = str(write_run(tmp_path, history(5)))
    done = subprocess.run([*command, run], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "window.png")
    wrong = subprocess.run([*command, "nowhere"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert done.stderr == ""
    version = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert version.returncode == 0 and version.stdout.startswith("dwmgrad ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"log_history": 3}',
        '{"epoch": 1}',
        '{"log_history": [7]}',
        '{"log_history": [{"step": 1, "loss": "x"}]}',
        '{"log_history": [{"step": 1, "loss": 1.0, "window": null}]}',
        '{"log_history": [{"step": [], "loss": 1.0}]}',
        '{"log_history": [{"step": 1, "loss": 1' + 400 * "0" + "}]}",
    ],
    ids=lambda text: text[:60],
)
def test_a_damaged_record_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match="trainer_state.json is damaged"):
        plot_run(tmp_path)


def test_the_picture_is_where_it_says(tmp_path: Path) -> None:
    folder = tmp_path / r"100%_$\frac$"  # not a formula
    folder.mkdir()
    run_dir = write_run(folder, history(5))
    assert plot_run(run_dir, tmp_path / "picture").is_file()
    with pytest.raises(OSError, match="directory"):
        plot_run(run_dir, tmp_path)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path) -> None:
    """In a Python that sees this source and torch's packages, and no matplotlib."""
    hidden = ("matplotlib", "mpl_toolkits", "pylab", "dwmgrad", "__")
    for path in filter(os.path.isdir, sys.path):
        if "-packages" in path:
            for entry in os.scandir(path):
                place = tmp_path / entry.name
                if not entry.name.startswith(hidden) and not place.exists():
                    place.symlink_to(entry.path)
    places = os.pathsep.join([str(tmp_path), str(Path(dwmgrad.__file__).parent.parent)])
    found = subprocess.run(
        [sys.executable, "-S", "-m", "dwmgrad.report", str(write_run(tmp_path, history(5)))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    )
    assert found.returncode == 1
    line = "python -m dwmgrad.report: the picture needs matplotlib: pip install matplotlib\n"
    assert found.stderr == line


def test_numbers_that_a_trainer_wrote_as_text(tmp_path: Path) -> None:
    logs = [{"step": s, "loss": f"{1 / s:.3f}", "window": s} for s in range(1, 5)]
    assert plot_run(write_run(tmp_path, logs)) == tmp_path / "window.png"
