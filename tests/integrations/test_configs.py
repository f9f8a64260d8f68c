"""The files for `accelerate launch`: Accelerate knows every key of them, and starts with them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
DEEPSPEED = [file for file in FILES if file.stem.startswith("deepspeed")]

# What the launched processes find in their environment, and which launcher makes it.
EXPECTED: dict[str, dict[str, str]] = {
    "cpu": {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"},
    "single_gpu_bf16": {"ACCELERATE_MIXED_PRECISION": "bf16", "CUDA_VISIBLE_DEVICES": "0"},
    "single_gpu_fp16": {"ACCELERATE_MIXED_PRECISION": "fp16", "CUDA_VISIBLE_DEVICES": "0"},
    "ddp": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "multi_node": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "fsdp1": {"ACCELERATE_MIXED_PRECISION": "bf16", "FSDP_USE_ORIG_PARAMS": "true"},
    "fsdp2": {"ACCELERATE_MIXED_PRECISION": "bf16", "FSDP_VERSION": "2"},
    **{
        name: {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": f"configs/accelerate/{name}.json",
        }
        for name in (
            "deepspeed_zero1",
            "deepspeed_zero2",
            "deepspeed_zero2_offload",
            "deepspeed_zero3",
        )
    },
}


def test_there_is_one_file_per_back_end() -> None:
    assert {file.stem for file in FILES} == set(EXPECTED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_opens_with_what_it_is_for(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 15 and first.endswith(".")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file: Path) -> None:
    load_config_from_file(str(file))  # refuses an unknown key at the top; below, it takes any
    known = vars(launch_command_parser().parse_args(["script.py"]))
    if "fsdp_version" not in known:  # before accelerate 1.6; the file says what happens then
        known |= {"fsdp_version": None, "fsdp_reshard_after_forward": None}
    config = yaml.safe_load(file.read_text())
    for section in ("deepspeed_config", "fsdp_config"):
        assert set(config.get(section, {})) <= set(known)


def environment_of(file: Path, monkeypatch) -> tuple[Any, dict[str, str]]:
    """What `accelerate launch --config_file` hands to the processes it starts."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    command = [
        "--config_file",
        str(file),
        "--main_process_port",
        "0",
        "script.py",
        "--an",
        "argument",
    ]
    # The names of nested keys are set on the arguments only if the command line is known.
    monkeypatch.setattr(sys, "argv", ["accelerate-launch", *command])
    args, defaults, precision_is_theirs = _validate_launch_command(
        launch_command_parser().parse_args(command)
    )
    if args.use_deepspeed:
        fields = list(defaults.deepspeed_config) + ["mixed_precision"] * precision_is_theirs
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        return args, prepare_deepspeed_cmd_env(args)[1]
    if args.use_fsdp or args.multi_gpu:
        return args, prepare_multi_gpu_env(args)
    command, environment = prepare_simple_launcher_cmd_env(args)
    assert command[-3:] == ["script.py", "--an", "argument"]
    return args, environment


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_launch_is_built_from_it(file: Path, monkeypatch) -> None:
    args, environment = environment_of(file, monkeypatch)
    expected = EXPECTED[file.stem]
    plugin = FullyShardedDataParallelPlugin.__dataclass_fields__
    if "FSDP_VERSION" in expected and "fsdp_version" not in plugin:
        pytest.skip("this accelerate has no FSDP2")
    assert {name: environment.get(name, "").lower() for name in expected} == {
        name: value.lower() for name, value in expected.items()
    }
    assert (args.use_deepspeed, args.use_fsdp, args.multi_gpu) == (
        file in DEEPSPEED,
        file.stem.startswith("fsdp"),
        file.stem in ("ddp", "multi_node"),
    )
    several = file in DEEPSPEED or args.use_fsdp or args.multi_gpu
    assert args.num_processes == (2 if several else 1)
    assert args.num_machines == (2 if file.stem == "multi_node" else 1)


@pytest.mark.parametrize("file", DEEPSPEED, ids=lambda file: file.stem)
def test_deepspeeds_own_file_leaves_the_optimizer_and_the_loss_alone(
    file: Path, monkeypatch
) -> None:
    _, environment = environment_of(file, monkeypatch)
    # Accelerate refuses these beside a file of DeepSpeed's own.
    fields = environment["ACCELERATE_CONFIG_DS_FIELDS"].split(",")
    assert set(fields) == {"deepspeed_config_file", "zero3_init_flag"}
    config = json.loads((ROOT / environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
    zero = config["zero_optimization"]
    assert f"zero{zero['stage']}" in file.stem
    assert "optimizer" not in config and "scheduler" not in config
    # DeepSpeed's bf16 and fp16 cast the model, and with it the loss; autocast does not
    assert "bf16" not in config and "fp16" not in config
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert ("offload_optimizer" in zero) == ("offload" in file.stem)
    assert config.get("zero_force_ds_cpu_optimizer", True) == ("offload" not in file.stem)


TRAIN = (
    "--task_name sst2 --use_sample --do_train --max_train_samples 16 --max_seq_length 16 "
    "--per_device_train_batch_size 2 --max_steps 2 --optim dwmgrad --use_cpu True --plot false "
    "--logging_steps 1 --save_strategy no --report_to none --disable_tqdm True --learning_rate 1e-3"
)
# What an unmodified script of somebody else's would do.
THEIRS = """
import sys
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
[args] = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)
    def forward(self, x):
        return {"loss": (self.linear(x) - 1).square().mean()}

trainer = Trainer(Model(), args, train_dataset=[{"x": torch.randn(3)} for _ in range(16)])
trainer.train()
for entry in trainer.state.log_history:
    entry["ranks"] = args.world_size
if trainer.is_world_process_zero():
    trainer.state.save_to_json(args.output_dir + "/trainer_state.json")
# with torch 2.13, a thread of gloo that is behind may abort a rank that ends at once (backends.md)
trainer.accelerator.wait_for_everyone()
"""


def start(folder: Path, options: str, script: list[str], **environment: str) -> list[dict]:
    """Runs `accelerate launch`; returns the logs of the run that it started."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [*options.split(), *script, "--output_dir", str(folder / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    for _ in range(3):
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        # waiting for the others makes gloo's abort of a rank that ends rare, no more (backends.md)
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((folder / "run" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def test_a_script_of_ours_trains_with_cpu_yaml(tmp_path: Path) -> None:
    logs = start(tmp_path, "configs/accelerate/cpu.yaml", ["scripts/run_glue.py", *TRAIN.split()])
    assert [entry["step"] for entry in logs] == [1, 2] and all("window" in e for e in logs)


def test_an_unmodified_script_trains_with_ddp_yaml(tmp_path: Path) -> None:
    """On two ranks; the file's GPUs give way to the CPU."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    arguments = (
        f"-m dwmgrad {tmp_path / 'theirs.py'} --optim dwmgrad --max_steps 2 --logging_steps 1 "
        "--per_device_train_batch_size 2 --use_cpu True --ddp_backend gloo --save_strategy no "
        "--report_to none"
    )
    with socket.socket() as free:  # older versions do not take 0 for a free port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"configs/accelerate/ddp.yaml --mixed_precision no --main_process_port {port}"
    environment = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    logs = start(tmp_path, options, arguments.split(), **environment)
    assert [entry["step"] for entry in logs] == [1, 2] and all("window" in e for e in logs)
    assert logs[0]["ranks"] == 2
