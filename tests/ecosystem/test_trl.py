"""TRL's trainers with `optim="dwmgrad"`: the loss that they log is the one the window sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import Seen, parameters, sentences, train

pytest.importorskip("trl")
pytestmark = [pytest.mark.ecosystem, pytest.mark.usefixtures("registered")]

SETTINGS = {
    "optim": "dwmgrad",
    "optim_args": "max_window=20,missing_loss=error",
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "max_steps": 5,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
}


def load(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("settings", "with_lora"),
    [
        ({}, False),
        ({"gradient_accumulation_steps": 3}, False),  # 8 micro-batches an epoch: the last is short
        ({"packing": True, "max_length": 16}, False),
        ({"completion_only_loss": True}, False),
        ({"gradient_accumulation_steps": 3}, True),
    ],
    ids=["plain", "accumulation", "packing", "completions", "LoRA and accumulation"],
)
def test_sft(causal_lm: Path, tmp_path: Path, settings: dict, with_lora: bool) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if "completion_only_loss" in settings:
        columns = {"prompt": sentences(16), "completion": sentences(16, seed=1)}
    else:
        columns = {"text": sentences(16)}
    model, tokenizer = load(causal_lm)
    before = parameters(model)
    seen = Seen()
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), **{**SETTINGS, **settings}),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[seen],
        peft_config=lora() if with_lora else None,
    )
    train(trainer, seen)
    assert len(seen.logged) == 5 and len(set(seen.logged)) == 5
    after = parameters(trainer.model)
    moved = {name for name, p in after.items() if p.requires_grad or "lora" in name}
    if with_lora:
        base = {n: p for n, p in after.items() if "lora" not in n}
        assert len(base) == len(before)
        assert all(map(torch.equal, base.values(), before.values()))
        assert any(p.any() for n, p in after.items() if "lora_B" in n)
    else:
        assert not moved - set(before)
        assert not any(torch.equal(p, before[name]) for name, p in after.items())


def test_dpo(causal_lm: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load(causal_lm)
    columns = {
        "prompt": sentences(16),
        "chosen": sentences(16, seed=1),
        "rejected": sentences(16, seed=2),
    }
    seen = Seen()
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path), **{**SETTINGS, "gradient_accumulation_steps": 2}),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[seen],
    )
    train(trainer, seen)
    assert len(seen.logged) == 5
    assert seen.observed[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    assert len(set(seen.logged)) > 3


@pytest.mark.parametrize("how", ["the script", "the module", "the command"])
def test_its_own_sft_script_in_one_command(causal_lm: Path, tmp_path: Path, how: str) -> None:
    """`python -m dwmgrad .../trl/scripts/sft.py --optim dwmgrad`, the script as it ships.

    The command, `trl sft`, starts the script in a process of its own.
    """
    import trl

    script = {
        "the script": str(Path(trl.__file__).parent / "scripts" / "sft.py"),
        "the module": "-m trl.scripts.sft",
        "the command": "-m trl.cli.main sft --num_processes 1 --num_machines 1 "
        "--mixed_precision no --dynamo_backend no --cpu",
    }[how]
    data = tmp_path / "data"
    data.mkdir()
    rows = (json.dumps({"text": text}) for text in sentences(16))
    (data / "train.jsonl").write_text("\n".join(rows))
    command = (
        f"-m dwmgrad {script} --optim dwmgrad --optim_args max_window=20,missing_loss=error "
        f"--model_name_or_path {causal_lm} --dataset_name {data} --output_dir {tmp_path}/run "
        "--use_peft --lora_r 4 --lora_target_modules q_proj v_proj --learning_rate 1e-2 "
        "--per_device_train_batch_size 2 --max_steps 3 --logging_steps 1 --save_steps 3 "
        "--use_cpu True --bf16 False --report_to none --disable_tqdm True"
    )
    process = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    saved = tmp_path / "run" / "checkpoint-3"
    history = json.loads((saved / "trainer_state.json").read_text())["log_history"]
    assert len(history) == 3 and all("window" in entry for entry in history)
    [*groups] = torch.load(saved / "optimizer.pt", weights_only=True)["param_groups"]
    assert {(g["window"], g["max_window"], g["observations"]) for g in groups} == {
        (history[-1]["window"], 20, 3)
    }
    assert groups[0]["last_loss"] == pytest.approx(float(history[-1]["loss"]), rel=1e-3)
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
