"""DeepSpeed ZeRO under the Trainer, on two CPU processes, beside DDP.

This file is also the script that those processes run, as test_deepspeed.py is.
"""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

deepspeed = pytest.importorskip("deepspeed")

from accelerate import PartialState  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from ranks import launch, leave  # noqa: E402
from test_deepspeed import KEEP, OFFLOAD, failure, no_extensions  # noqa: E402
from tiny import tiny_roberta  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

import dwmgrad  # noqa: E402
from dwmgrad import DWMGrad  # noqa: E402
from dwmgrad.integrations.accelerate import innermost  # noqa: E402

pytestmark = pytest.mark.ecosystem

STEPS = 9
STOP = 4  # in the middle of an epoch of three steps
SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "accelerate").glob("deepspeed_*.json"))
CASES: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "zero": OFFLOAD, **KEEP},
    # last: ZeRO-3 leaves another torch.nn.functional.linear behind, which rounds differently
    "zero3": {"stage": 3},
}


# ---- in the test's process ----


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return launch(__file__, tmp_path_factory.mktemp("trainer"))


@pytest.mark.parametrize("name", ["ddp", *CASES])
def test_the_window_sees_the_loss_that_the_trainer_logs(ranks, name: str) -> None:
    for rank in ranks:
        run = rank[name]
        assert run["world size"] == 2 and run["moves"] == [STEPS, STEPS]
        assert len(run["observed"]) == STEPS and len(set(run["windows"])) > 2
    logged = ranks[0][name]["logged"]  # rank 0 logs
    assert ranks[0][name]["observed"] == pytest.approx(logged, abs=1e-4)
    assert ranks[0][name]["observed"] == ranks[1][name]["observed"]


@pytest.mark.parametrize("name", CASES)
def test_zero_trains_as_ddp_does(ranks, name: str) -> None:
    ddp, zero = (ranks[0][case] for case in ("ddp", name))
    assert zero["engine"] == f"DeepSpeedEngine {CASES[name]['stage']}"
    assert zero["windows"] == ddp["windows"]
    assert zero["observed"] == pytest.approx(ddp["observed"], rel=2e-5)
    torch.testing.assert_close(zero["parameters"], ddp["parameters"], rtol=0, atol=1e-5)
    assert torch.equal(zero["parameters"], ranks[1][name]["parameters"])


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_run(ranks, name: str) -> None:
    for rank in ranks:
        whole, resumed = rank[name], rank[f"{name} resumed"]
        assert torch.equal(resumed["parameters"], whole["parameters"])
        for key in ("windows", "observed"):
            assert resumed[key] == whole[key][STOP:]
        assert resumed["moves"] == whole["moves"]


@pytest.mark.parametrize("stage", [2, 3])
def test_auto_does_as_under_ddp(ranks, stage: int) -> None:
    """With the Trainer's clipping, which DeepSpeed does inside of its step."""
    ddp, zero = (ranks[0][f"auto, {name}"] for name in ("ddp", f"zero{stage}"))
    assert zero["limits"] == pytest.approx(ddp["limits"], rel=1e-4)
    assert 0 < min(ddp["limits"]) < max(ddp["limits"]) < 1
    assert zero["windows"] == ddp["windows"]
    torch.testing.assert_close(zero["parameters"], ddp["parameters"], rtol=0, atol=1e-5)


def test_a_class_and_its_arguments_do_the_same_as_the_name(ranks) -> None:
    for rank in ranks:
        assert torch.equal(rank["by class"]["parameters"], rank["zero2"]["parameters"])


def test_an_optimizer_that_deepspeed_drops_is_an_error(ranks) -> None:
    for rank in ranks:
        assert rank["given"].startswith("RuntimeError") and "AdamW" in rank["given"]
        assert "use --optim dwmgrad_finetune, or another of its names" in rank["given"]


def test_an_optimizer_in_deepspeeds_configuration_is_an_error(ranks) -> None:
    for rank in ranks:
        assert rank["configured"].startswith("RuntimeError") and "AdamW" in rank["configured"]


def test_offload_that_would_take_another_optimizer_is_refused(ranks) -> None:
    for rank in ranks:
        assert rank["offload"].startswith("RuntimeError")
        assert '"zero_force_ds_cpu_optimizer": false' in rank["offload"]


def test_bf16_makes_the_loss_coarse_and_torch_autocast_does_not(ranks) -> None:
    """DeepSpeed's bf16 casts the model, so RoBERTa's head returns a loss of 8 bits."""
    for rank in ranks:
        assert "the loss is torch.bfloat16" in rank["bf16"]["warnings"][0]
        assert rank["autocast"]["warnings"] == []
        assert rank["autocast"]["observed"] == pytest.approx(rank["zero2"]["observed"], rel=2e-2)
        assert rank["autocast"]["observed"] != rank["zero2"]["observed"]  # it is on


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_configurations_train_with_a_float32_loss(ranks, file: Path) -> None:
    for rank in ranks:
        run = rank[file.name]
        assert run["engine"] == f"DeepSpeedEngine {file.stem.removeprefix('deepspeed_zero')[0]}"
        assert run["moves"] == [STEPS, STEPS] and run["warnings"] == []
        assert run["observed"] == pytest.approx(rank["ddp"]["observed"], rel=2e-2)


# ---- in the launched processes ----


def dataset() -> list[dict]:
    tokens = torch.randint(5, 40, (22, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": int(row[0] > 20)} for row in tokens]


class Seen(TrainerCallback):
    """What the optimizer saw at every log, beside what the Trainer logged; stops where told."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop
        self.told: dict[str, list] = {"logged": [], "observed": [], "windows": [], "limits": []}

    def on_log(self, args, state, control, logs=None, optimizer=None, **kwargs) -> None:
        if "loss" in logs:
            inner = innermost(optimizer)
            self.told["logged"].append(logs["loss"])
            self.told["observed"].append(inner.last_loss)
            self.told["windows"].append(inner.window)
            self.told["limits"].append(logs.get("step_limit"))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.stop:
            control.should_training_stop = True


def config_of(stage: int, zero: dict | None = None, **config: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            **(zero or {}),
        },
        **config,
    }


def train(
    folder: Path,
    config: dict | str | None,
    stop: int | None = None,
    resume: bool = False,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # the last Accelerator's
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "optim": "dwmgrad",
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "adam_epsilon": 1e-6,  # the keys' bias has rounding errors for gradients: keeps them small
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no" if stop is None else "steps",
        "save_steps": STOP,
        "report_to": "none",
        "disable_tqdm": True,
    }
    if config is None:
        settings |= {"use_cpu": True, "ddp_backend": "gloo"}
    else:
        # The Trainer does not hand a back end on to Accelerate together with DeepSpeed, and without
        # one by name every rank is taken for the only one: so the state is made here.
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
        settings |= {"deepspeed": config, "accelerator_config": {"use_configured_state": True}}
    args = TrainingArguments(**{**settings, **(changes or {})})
    seen = Seen(stop)
    given = options.pop("given", None)
    model = tiny_roberta()
    if given is not None:
        options["optimizers"] = (DWMGrad(model.parameters(), **given), None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("always", message=".*the loss.*")
        trainer = Trainer(model, args, train_dataset=dataset(), callbacks=[seen], **options)
        checkpoint = str(folder / f"checkpoint-{STOP}") if resume else None
        trainer.train(resume_from_checkpoint=checkpoint)
    parameters = list(model.parameters())
    sharded = config is not None and trainer.accelerator.deepspeed_plugin.zero_stage == 3
    whole = deepspeed.zero.GatheredParameters(parameters) if sharded else contextlib.nullcontext()
    with whole:
        full = torch.cat([p.detach().float().flatten().clone() for p in parameters])
    stage = trainer.accelerator.deepspeed_plugin.zero_stage if config is not None else 0
    return {
        **seen.told,
        "world size": args.world_size,
        "engine": f"{type(trainer.model_wrapped).__name__} {stage}",
        "moves": [group["observations"] for group in innermost(trainer.optimizer).param_groups],
        "parameters": full,
        "warnings": [str(w.message) for w in caught],
    }


def main(folder: Path) -> None:
    no_extensions()
    dwmgrad.register()
    told: dict[str, Any] = {"ddp": train(folder / "ddp", None)}
    zero2 = config_of(2)
    told["by class"] = train(
        folder / "class",
        zero2,
        changes={"optim": "adamw_torch"},
        optimizer_cls_and_kwargs=(DWMGrad, {"lr": 1e-2, "eps": 1e-6}),
    )
    plain = {"optim": "adamw_torch"}
    told["given"] = failure(
        train, folder / "given", config_of(2), changes=plain, given={"lr": 1e-2}
    )
    adamw = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}
    told["configured"] = failure(train, folder / "configured", config_of(2, optimizer=adamw))
    told["offload"] = failure(train, folder / "offload", config_of(2, OFFLOAD))
    bf16 = {"bf16": True, "use_cpu": True}  # the Trainer allows bf16 on the CPU only if told of it
    told["bf16"] = train(folder / "bf16", config_of(2, bf16={"enabled": True}), changes=bf16)
    autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    told["autocast"] = train(folder / "autocast", config_of(2, **autocast))
    auto = {"optim": "dwmgrad_auto", "max_grad_norm": 0.1}
    told["auto, ddp"] = train(folder / "auto", None, changes=auto)
    told["auto, zero2"] = train(folder / "auto", config_of(2), changes=auto)
    for name, settings in CASES.items():
        config = config_of(**settings)
        told[name] = train(folder / name, config)
        file = folder / f"{name}-{os.environ['RANK']}.json"  # a path does as well
        file.write_text(json.dumps(config))
        train(folder / name, str(file), stop=STOP)
        told[f"{name} resumed"] = train(folder / name, str(file), resume=True)
    told["auto, zero3"] = train(folder / "auto", config_of(3), changes=auto)
    for file in SHIPPED:  # ZeRO-3's is the last
        told[file.name] = train(folder / file.stem, str(file))
    leave(told, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
