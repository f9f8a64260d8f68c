"""DeepSpeed ZeRO on two CPU processes; runs where deepspeed is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

TRAIN = """
import json, sys
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from dwmgrad import DWMGrad

stage, folder = int(sys.argv[1]), sys.argv[2]
config = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": stage, "sub_group_size": 20},
    "zero_allow_untested_optimizer": True,
}
plugin = DeepSpeedPlugin(hf_ds_config=config) if stage else None
accelerator = Accelerator(cpu=True, deepspeed_plugin=plugin)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
groups = [
    {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
    {"params": [p for p in model.parameters() if p.ndim == 1]},
]
inner = DWMGrad(groups, lr=1e-2, missing_loss="error")
model, optimizer = accelerator.prepare(model, inner)
generator = torch.Generator().manual_seed(accelerator.process_index)
seen = []
for _ in range(40):
    loss = (model(torch.randn(4, 6, generator=generator)) - 1).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    observations = [group["observations"] for group in inner.param_groups]
    seen.append([inner.window, inner.last_loss, *observations])
with open(f"{folder}/{stage}-{accelerator.process_index}.json", "w") as file:
    json.dump(seen, file)
"""


def train(stage: int, folder: Path) -> list[list]:
    (folder / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(folder / "train.py"), str(stage), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{stage}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_moves_the_window_once_a_step_and_as_ddp_does(stage: int, tmp_path: Path) -> None:
    first, second = train(stage, tmp_path)
    assert first == second
    ddp, _ = train(0, tmp_path)
    for step, (ours, theirs) in enumerate(zip(first, ddp, strict=True), start=1):
        assert ours[0] == theirs[0] and ours[2:] == [step, step]
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
