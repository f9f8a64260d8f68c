"""Two real processes: nothing is counted twice, and the ranks agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, read_json

# Runs a script and leaves past the end of gloo's threads, which now and then aborts the process.
LAUNCH = """
import os, runpy, sys
import torch.distributed as dist
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
dist.barrier()
os._exit(0)
"""


def launch(name: str, argv: list[str], ranks: int, folder: Path) -> None:
    (folder / "launch.py").write_text(LAUNCH)
    # --standalone takes a free port
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [
            *command,
            str(folder / "launch.py"),
            str(ROOT / "scripts" / f"{name}.py"),
            *argv,
            "--ddp_backend",
            "gloo",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check(name: str, argv: list[str], glue_dir, tmp_path, words: list[str]) -> None:
    words = [*argv, "--data_dir", str(glue_dir), "--task_name", "mrpc", *words]
    launch(name, [*words, "--do_train", "--do_eval", "--do_predict"], 2, tmp_path)
    out = tmp_path / "out"
    results = read_json(out / "all_results.json")
    assert results["eval_samples"] == 9
    assert len((out / "submission" / "MRPC.tsv").read_text().splitlines()) == 10
    history = read_json(out / "trainer_state.json")["log_history"]
    assert sum("loss" in entry for entry in history) == 2  # 12 rows, 2 ranks, 4 a batch

    # one process on the saved model counts the same 9 rows
    from .conftest import load_script

    words += ["--model_name_or_path", str(out), "--config_name", str(out)]
    alone = load_script(name).main([*words, "--do_eval", "--output_dir", str(tmp_path / "alone")])
    for key in ("eval_accuracy", "eval_f1"):
        assert alone[key] == pytest.approx(results[key])


def test_the_bare_loop_on_two_ranks(argv, glue_dir, tmp_path):
    check("run_glue_no_trainer", argv, glue_dir, tmp_path, [])


@pytest.mark.slow
def test_the_trainer_on_two_ranks(argv, glue_dir, tmp_path):
    check("run_glue", argv, glue_dir, tmp_path, [])


@pytest.mark.slow
def test_lora_on_two_ranks(argv, glue_dir, tmp_path, pretrained):
    words = [*argv, "--model_name_or_path", str(pretrained), "--config_name", str(pretrained)]
    words += ["--data_dir", str(glue_dir), "--task_name", "mnli", "--lora_r", "2"]
    words += ["--ignore_mismatched_sizes"]  # two labels in the model, three in the task
    launch("run_glue_no_trainer", [*words, "--do_train", "--do_eval"], 2, tmp_path)
    assert read_json(tmp_path / "out" / "all_results.json")["eval_samples_mm"] == 9
