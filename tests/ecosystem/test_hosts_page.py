"""docs/hosts.md: what it tells to type is typed here, and trains."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pages import ROOT, blocks
from small import SIZES, sentences
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dwmgrad import DWMGrad
from dwmgrad.wrappers import dwmgrad_in

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.usefixtures("registered"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]
PAGE = ROOT / "docs" / "hosts.md"
HOSTS = (
    "accelerate",
    "lightning",
    "lightning, manual",
    "fabric",
    "ray",
    "skorch",
    "timm",
    "trl",
    "unsloth",
)
CODE = dict(zip(HOSTS, blocks(PAGE, "python"), strict=True))
"""Each host's block."""


def typed(host: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(CODE[host], f"{PAGE.name}, {host}", "exec"), names)
    return names


@pytest.fixture
def yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page calls yours, for eight batches of two classes."""
    monkeypatch.chdir(tmp_path)
    inputs = torch.randn(32, 4)
    targets = (inputs.sum(1) > 0).long()
    data = torch.utils.data.TensorDataset(inputs, targets)
    return {
        "model": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)),
        "criterion": torch.nn.CrossEntropyLoss(),
        "loader": torch.utils.data.DataLoader(data, batch_size=4),
        "inputs": inputs.numpy(),
        "targets": targets.numpy(),
    }


def assert_trained(optimizer: DWMGrad, steps: int) -> None:
    """Every step had a loss, all parameters have moved, and the preset is that of the README."""
    group = optimizer.param_groups[0]
    assert (group["max_window"], group["second_moment_window"]) == (100, 500)
    assert (group["observations"], group["steps"]) == (steps, steps)
    assert optimizer.last_loss is not None and 0 < optimizer.last_loss < 10
    assert all(optimizer.state[p] for each in optimizer.param_groups for p in each["params"])


@pytest.mark.parametrize("host", ["accelerate", "fabric"])
def test_a_loop(host: str, yours) -> None:
    pytest.importorskip({"fabric": "lightning"}.get(host, host))
    optimizer = dwmgrad_in(typed(host, yours)["optimizer"])
    assert_trained(optimizer, steps=4)


@pytest.mark.parametrize("host", ["lightning", "lightning, manual"])
def test_lightning(host: str, yours) -> None:
    pytest.importorskip("lightning")
    trainer = typed(host, yours)["trainer"]
    assert_trained(trainer.optimizers[0], steps=4)
    if host == "lightning":
        assert trainer.logged_metrics["window"] == trainer.optimizers[0].window


def test_skorch(yours) -> None:
    pytest.importorskip("skorch")
    net = typed("skorch", yours)["net"]
    assert_trained(net.optimizer_, steps=2)
    assert net.optimizer_.last_loss == pytest.approx(net.history[-1, "train_loss"])  # one batch


def test_timm(yours) -> None:
    pytest.importorskip("timm")
    from timm.optim._optim_factory import default_registry

    try:
        optimizer = typed("timm", yours)["optimizer"]
    finally:
        default_registry._optimizers.pop("dwmgrad", None)
    assert_trained(optimizer, steps=8)
    decays = {
        p.ndim: each["weight_decay"] for each in optimizer.param_groups for p in each["params"]
    }
    assert decays == {1: 0.0, 2: 0.01}


def test_trl(yours, causal_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    yours["model"] = AutoModelForCausalLM.from_pretrained(causal_lm)
    yours["dataset"] = Dataset.from_dict({"text": sentences(16)})
    # its default, bfloat16, is refused where there is no GPU
    monkeypatch.setattr(trl, "SFTConfig", partial(trl.SFTConfig, use_cpu=True, bf16=False))
    trainer = typed("trl", yours)["trainer"]
    assert_trained(dwmgrad_in(trainer.optimizer), steps=6)
    assert "window" in trainer.state.log_history[0]


def test_ray(yours, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Ray's local mode: a cluster of its own starts too slowly on a busy machine."""
    pytest.importorskip("ray.train.torch", exc_type=ImportError)
    config = LlamaConfig(**SIZES)
    rows = torch.randint(0, config.vocab_size, (16, 8)).tolist()
    yours["model"] = LlamaForCausalLM(config)
    yours["dataset"] = [{"input_ids": row, "labels": row} for row in rows]
    assert CODE["ray"].count("num_workers=2") == 1
    monkeypatch.setitem(CODE, "ray", CODE["ray"].replace("num_workers=2", "num_workers=0"))
    metrics = typed("ray", yours)["result"].metrics
    assert metrics["step"] == 6 and 0 < metrics["window"] <= 100


def test_the_arguments_for_unsloth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its own import, which needs a GPU."""
    trl = pytest.importorskip("trl")
    monkeypatch.setattr(trl, "SFTConfig", partial(trl.SFTConfig, use_cpu=True, bf16=False))
    monkeypatch.setitem(CODE, "unsloth", CODE["unsloth"].partition("\n")[2])
    args = typed("unsloth", {})["args"]
    assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is DWMGrad


@pytest.mark.parametrize("block", range(2), ids=["axolotl", "llamafactory"])
def test_the_settings_of_a_file(block: int, tmp_path: Path) -> None:
    """As these hosts hand them to the Trainer's arguments."""
    settings = yaml.safe_load(blocks(PAGE, "yaml")[block])
    optim_args = settings["optim_args"]
    if isinstance(optim_args, dict):
        optim_args = ",".join(f"{key}={value}" for key, value in optim_args.items())
    name = settings.get("optim") or settings["optimizer"]
    args = TrainingArguments(str(tmp_path), optim=name, optim_args=optim_args)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
    assert optimizer_class is DWMGrad
    assert (options["preset"], options["loss_guard"]) == ("finetune", 3)
