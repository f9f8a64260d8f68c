"""PEFT's adapters under DWMGrad: they alone move, and their checkpoints continue bit for bit."""

from pathlib import Path

import pytest
import torch
from small import WORDS, Seen, parameters, train, unwrapped
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from dwmgrad import DWMGrad

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("registered")

ATTENTION = {"target_modules": ["query", "value"]}
OUTPUT = {"target_modules": ["key", "value", "output.dense"]}
METHODS = {
    "LoRA": lambda: peft.LoraConfig("SEQ_CLS", r=4, **ATTENTION),
    "DoRA": lambda: peft.LoraConfig("SEQ_CLS", r=4, use_dora=True, **ATTENTION),
    "IA3": lambda: peft.IA3Config("SEQ_CLS", feedforward_modules=["output.dense"], **OUTPUT),
    "prefix tuning": lambda: peft.PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=3),
    "prompt tuning": lambda: peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.fixture
def tiny(causal_lm: Path, encoder: Path):
    """Makes the model of an adapter, and its data: the base is the same every time."""

    def make(config, seed: int = 0):
        if config.task_type == "SEQ_CLS":
            model = AutoModelForSequenceClassification.from_pretrained(encoder)
            model.accepts_loss_kwargs = False  # its head ignores num_items_in_batch
        else:
            model = AutoModelForCausalLM.from_pretrained(causal_lm)
        base = parameters(model)
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config), base

    return make


def dataset(task_type: str) -> list[dict]:
    tokens = torch.randint(4, 4 + len(WORDS), (16, 8), generator=torch.Generator().manual_seed(1))
    if task_type == "CAUSAL_LM":
        return [{"input_ids": row, "labels": row} for row in tokens]
    return [{"input_ids": row, "labels": int(row[0] > 14)} for row in tokens]


def trainer_of(model, output: Path, optimizers=(None, None)) -> tuple[Trainer, Seen]:
    seen = Seen()
    arguments = TrainingArguments(
        str(output),
        optim="dwmgrad",
        optim_args="max_window=20,missing_loss=error",
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = dataset(model.peft_config["default"].task_type)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[seen], optimizers=optimizers)
    return trainer, seen


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def frozen(model) -> dict[str, torch.Tensor]:
    """The base model's parameters by the names they had before the adapter came."""
    return {
        name.replace("base_layer.", "").replace("original_module.", ""): param
        for name, param in model.get_base_model().named_parameters()
        if not param.requires_grad
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_alone_is_trained_and_resumed(method: str, tiny, tmp_path: Path) -> None:
    model, base = tiny(METHODS[method]())
    before = trained(model)
    whole, seen_whole = trainer_of(model, tmp_path)
    train(whole, seen_whole)
    after = trained(model)
    assert after.keys() == before.keys() and after
    assert not any(torch.equal(before[name], after[name]) for name in before)
    held = frozen(model)
    assert base.keys() <= held.keys()
    assert all(torch.equal(held[name], base[name]) for name in base)
    assert set(unwrapped(whole.optimizer).state) == {
        p for p in model.parameters() if p.requires_grad
    }

    other, _ = tiny(METHODS[method](), seed=1)  # an adapter that starts elsewhere
    assert any(not torch.equal(p, before[name]) for name, p in trained(other).items()) or (
        method == "IA3"  # which starts at 1, whatever the seed
    )
    resumed, seen = trainer_of(other, tmp_path)
    train(resumed, seen, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (seen.observed, seen.windows) == (seen_whole.observed[2:], seen_whole.windows[2:])
    assert all(torch.equal(p, after[name]) for name, p in trained(other).items())


def test_lora_plus(tiny, tmp_path: Path) -> None:
    """Four groups, one of them empty, with rates of their own and one window."""
    from peft.optimizers import create_loraplus_optimizer

    model, base = tiny(peft.LoraConfig("CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    optimizer = create_loraplus_optimizer(
        model, DWMGrad, lr=1e-4, loraplus_lr_ratio=16, max_window=20, missing_loss="error"
    )
    assert isinstance(optimizer, DWMGrad)
    assert [bool(group["params"]) for group in optimizer.param_groups] == [True, False, True, False]
    before = trained(model)
    batch = torch.stack([row["input_ids"] for row in dataset("CAUSAL_LM")[:4]])
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step(loss=loss)
    for name, p in trained(model).items():
        if "lora_A" in name:  # its gradient is 0 as long as B is
            assert torch.equal(p, before[name])
        else:  # the first step of DWMGrad is 2 lr long
            moved = p[p != 0].abs()
            torch.testing.assert_close(moved, torch.full_like(moved, 2 * 16e-4), rtol=0.05, atol=0)
    optimizer.zero_grad()

    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer, seen = trainer_of(model, tmp_path, optimizers=(optimizer, constant))
    train(trainer, seen)
    assert unwrapped(trainer.optimizer) is optimizer
    assert {group["window"] for group in optimizer.param_groups} == {seen.windows[-1]}
    assert not any(torch.equal(p, before[name]) for name, p in trained(model).items())
    held = frozen(model)
    assert all(torch.equal(held[name], base[name]) for name in base)
    # and what was saved fits an optimizer made the same way
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    again = create_loraplus_optimizer(
        tiny(peft.LoraConfig("CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))[0],
        DWMGrad,
        lr=1e-4,
        loraplus_lr_ratio=16,
        max_window=20,
        missing_loss="error",
    )
    again.load_state_dict(saved)
    assert (again.window, again.last_loss) == (optimizer.window, optimizer.last_loss)
