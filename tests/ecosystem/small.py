"""Models, tokenizers and sentences small enough for a test, made on the spot."""

import random
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)

WORDS = "a the one no cat dog bird tree sat ran saw was on under by and very small red old".split()
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS) + 4,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Random words; of different lengths, so that batches are padded."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(3, 10))) for _ in range(count)]


def tokenizer(start: str, end: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", start, end, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    if start == "<cls>":
        names |= {"cls_token": start, "sep_token": end}
        words.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}",
            pair=f"{start} $A {end} $B:1 {end}:1",
            special_tokens=[(start, 2), (end, 3)],
        )
    else:
        names |= {"bos_token": start, "eos_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names)


def save_causal_lm(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer("<s>", "</s>").save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    torch.manual_seed(0)
    # without dropout: a few steps on few sentences say more
    config = BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer("<cls>", "<sep>").save_pretrained(folder)
    return folder


def unwrapped(optimizer: Any) -> Any:
    """The optimizer under Accelerate's wrapper."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class Seen(TrainerCallback):
    """At every log: what the Trainer says the loss was, and what the optimizer took it for."""

    def __init__(self) -> None:
        self.logged: list[float] = []
        self.observed: list[float] = []
        self.windows: list[int] = []

    def on_log(self, args, state, control, logs=None, optimizer=None, **kwargs) -> None:
        if "loss" in logs:
            inner = unwrapped(optimizer)
            self.logged.append(logs["loss"])
            self.observed.append(inner.last_loss)
            self.windows.append(inner.window)


def train(trainer: Trainer, seen: Seen, **options: Any) -> None:
    """Trains; every step has its loss, the one that is logged, and the logs have its window."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(no loss|not finite).*")
        trainer.train(**options)
    assert type(unwrapped(trainer.optimizer)).__name__ == "DWMGrad"
    tolerance = 2e-4  # newer Trainers round what they log
    assert len(seen.logged) >= 2
    assert all(
        abs(a - b) <= tolerance * max(1.0, abs(b))
        for a, b in zip(seen.observed, seen.logged, strict=True)
    ), (seen.observed, seen.logged)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["window"] for entry in logs[-len(seen.windows) :]] == seen.windows


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
