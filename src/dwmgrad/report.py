"""`python -m dwmgrad.report RUN_DIR`: draws a run's loss, rate, window, momentum and limit."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import __version__

CURVES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "window": "window (steps)",
    "effective_momentum": "effective momentum",
    "step_limit": "step limit",
    "effective_lr": "effective lr",
}
"""Keys of a Trainer's log, and their axis labels, from top to bottom."""


def plot_run(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Draws loss, learning rate, window, effective momentum and step limit of a run.

    Args:
        run_dir: a Trainer's output_dir, or a checkpoint in it. It has a `trainer_state.json`;
            otherwise its checkpoint of the highest step is read.
        output: the PNG to write; `window.png` in `run_dir` by default.

    Returns:
        The path of the PNG.

    Raises:
        FileNotFoundError: if there is no `trainer_state.json`.
        ImportError: if matplotlib is not installed.
        ValueError: if that file is damaged, or has no loss.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ModuleNotFoundError as error:
        raise ImportError(f"the picture needs {error.name}: pip install matplotlib") from error
    run_dir = Path(run_dir)
    history = _history(run_dir)
    present = [key for key in CURVES if any(key in entry for entry in history)]
    if "loss" not in present:
        raise ValueError(f"{run_dir} logged no loss: lower --logging_steps")

    figure = Figure(figsize=(8, 2.0 * len(present) + 0.6), layout="constrained")
    axes = figure.subplots(len(present), sharex=True, squeeze=False)[:, 0]
    for axis, key in zip(axes, present, strict=True):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axis.plot(*zip(*points, strict=True), color="tab:blue", linewidth=1.2, label="training")
        axis.set_ylabel(CURVES[key])
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
    evaluated = [(e["step"], e["eval_loss"]) for e in history if "eval_loss" in e]
    if evaluated:
        axes[0].plot(*zip(*evaluated, strict=True), "o--", color="tab:orange", label="evaluation")
        axes[0].legend(frameon=False)
    axes[-1].set_xlabel("step")
    figure.suptitle(run_dir.resolve().name, parse_math=False)
    path = Path(output) if output is not None else run_dir / "window.png"
    figure.savefig(path, dpi=120, format=path.suffix[1:] or "png")  # else it adds a suffix
    return path


def _history(run_dir: Path) -> list[dict[str, float]]:
    """What is drawn of the run's logs. A number may be in quotation marks, as `float` takes it."""
    checkpoints = run_dir.glob("checkpoint-*/trainer_state.json")
    last_first = sorted(checkpoints, key=_step_of, reverse=True)
    path = next(filter(Path.is_file, [run_dir / "trainer_state.json", *last_first]), None)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: there is no such folder; give a Trainer's output_dir")
    if path is None:
        raise FileNotFoundError(
            f"{run_dir} has no trainer_state.json, nor has a checkpoint in it: give a Trainer's "
            "output_dir"
        )
    keys = ("step", "eval_loss", *CURVES)
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        logs = [entry for entry in history if "step" in entry]
        return [{key: float(entry[key]) for key in keys if key in entry} for entry in logs]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise ValueError(f"{path} is damaged: it is not what a Trainer writes") from None


def _step_of(state: Path) -> tuple[int, str]:
    """Of a checkpoint's state by the folder's name; a copy may have lost the files' times."""
    number = state.parent.name.partition("-")[2]
    return int(number) if number.isdecimal() else -1, number


def main(arguments: list[str]) -> None:
    """Parses the command line, draws the picture and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m dwmgrad.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="an output_dir, or a checkpoint inside one")
    parser.add_argument("--output", type=Path, help="the PNG (default: RUN_DIR/window.png)")
    parser.add_argument("--version", action="version", version=f"dwmgrad {__version__}")
    options = parser.parse_args(arguments)
    try:
        print(plot_run(options.run_dir, options.output))
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"python -m dwmgrad.report: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
