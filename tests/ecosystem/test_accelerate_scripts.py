"""accelerate's own test scripts, unmodified, with DWMGrad in the place of the optimizers they make.

They ship in `accelerate.test_utils.scripts`; `run_with_dwmgrad.py` runs them. `test_script` trains
by a plain loop and by Accelerate, with batches split in two ways and in 16 bits, and asserts equal
parameters; `test_sync` accumulates gradients; the two of `external_deps` schedule, evaluate, save
and resume. What they assert holds for any optimizer. Left out:

- `test_performance --performance_lower_bound`: the accuracy that AdamW reaches with bert-base on
  MRPC; here are neither that model nor that data. The script runs without its bound.
- `test_merge_weights` (FSDP1), `test_peak_memory_usage`, `test_ds_multiple_model`,
  `test_ds_alst_ulysses_sp`: need accelerators, models from the hub, or both.
- `test_ops`, `test_metrics`, `test_distributed_data_loop`, `test_ddp_comm_hook`, `test_notebook`,
  `test_pippy`, `test_zero3_integration`: make no optimizer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytestmark = pytest.mark.ecosystem

RUNNER = str(Path(__file__).parent / "run_with_dwmgrad.py")
SCRIPTS = "accelerate.test_utils.scripts"
LAUNCH = "accelerate.commands.launch --num_machines 1 --mixed_precision no --dynamo_backend no"
ONE_PROCESS = f"{LAUNCH} --cpu --num_processes 1"
# `--cpu --num_processes 2` would start one process; port 0 is any free one
TWO_PROCESSES = f"{LAUNCH} --multi_gpu --num_processes 2 --main_process_port 0"
TORCHRUN = "torch.distributed.run --standalone --nproc_per_node 2"


def run(launcher: str, script: str, folder: Path, *arguments: str) -> tuple[list[list], str]:
    """What the optimizers of the script saw, the same on every rank, and what it printed."""
    process = subprocess.run(
        [sys.executable, "-m", *launcher.split(), RUNNER, f"{SCRIPTS}.{script}", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    lines = [line for line in process.stdout.splitlines() if line.startswith("SEEN ")]
    assert len(lines) == (1 if launcher == ONE_PROCESS else 2) and len(set(lines)) == 1
    return json.loads(lines[0].removeprefix("SEEN ")), process.stdout


@pytest.mark.parametrize("launcher", [ONE_PROCESS, TWO_PROCESSES], ids=["1 process", "2 processes"])
def test_script(launcher: str, tmp_path: Path) -> None:
    seen, printed = run(launcher, "test_script", tmp_path)
    assert "BF16 training check" in printed and "Test reinstantiated state" in printed
    # for each of two samplers a plain loop, then Accelerate with and without split batches, in
    # bfloat16 and in float16: the script compares parameters, here are the windows
    assert [prepared for prepared, *_ in seen] == [False, True, True, True, True] * 2
    for start in (0, 5):
        (_, losses, windows), *others = seen[start : start + 5]
        assert len(losses) == 12
        for _, other_losses, other_windows in others:
            assert other_windows == windows
            assert other_losses == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("launcher", [ONE_PROCESS, TORCHRUN], ids=["1 process", "2 processes"])
def test_sync(launcher: str, tmp_path: Path) -> None:
    seen, printed = run(launcher, "test_sync", tmp_path)
    assert ("Test Distributed `no_sync`" in printed) == (launcher == TORCHRUN)
    (first, halves, _), (second, losses, _) = seen
    assert (first, second) == (False, True)
    # Both loops divide each batch's loss by the 2 that are accumulated, and one that is left over,
    # too. The plain loop steps after each, the other one after two: the halves add up. Both start
    # at lr = 0 and stay near it, so the losses are nearly those of the same model.
    assert len(halves) == (3 if launcher == TORCHRUN else 5)  # of 80 samples in batches of 16
    expected = [a + b for a, b in zip(halves[::2], halves[1::2], strict=False)] + [halves[-1]]
    assert losses == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_checkpointing(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    script = "external_deps.test_checkpointing"
    arguments = ["--model_name_or_path", str(encoder), "--output_dir", str(tmp_path)]
    [(prepared, losses, _)], _ = run(
        ONE_PROCESS, script, tmp_path, *arguments, "--partial_train_epoch", "1"
    )
    assert prepared and len(losses) == 5
    resume = ["--resume_from_checkpoint", str(tmp_path / "epoch_0")]
    [(_, losses_again, _)], printed = run(ONE_PROCESS, script, tmp_path, *arguments, *resume)
    assert "resumed checkpoint performance" in printed and losses_again == []
    saved = torch.load(tmp_path / "epoch_0" / "optimizer.bin", weights_only=True)
    [group] = saved["param_groups"]
    assert (group["observations"], group["last_loss"]) == (5, losses[-1])


@pytest.mark.slow
def test_performance(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    arguments = ["--model_name_or_path", str(encoder), "--output_dir", str(tmp_path)]
    [(prepared, losses, _)], _ = run(
        TORCHRUN, "external_deps.test_performance", tmp_path, *arguments, "--num_epochs", "1"
    )
    assert prepared and len(losses) == 3
    assert (tmp_path / "model.safetensors").exists()
