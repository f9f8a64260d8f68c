"""A small GPT-2 from random weights that learns to continue film reviews; perplexity.

The texts are the package's own SST-2 sentences in the package's tokenizer, one after the other in
blocks of 32 tokens. Of the training phrases, which are parts of each other, only those count that
are part of no other, and tokens that come less than 5 times in them are one token, unknown. 3
layers, 192 wide, 2 million parameters; 450 steps of 16 blocks are one and a half epochs. One run
takes 45 s on one core.

The model shifts the labels itself, so a block of 32 tokens has 31 targets. The Trainer tells it by
`num_items_in_batch` what to divide by: in transformers 5.23 the targets (where the model's
`loss_type` is known), in older versions all labels, which makes losses 31/32 of the mean.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from experiments.workload import Job, Rows, TrainerWorkload, standard


@dataclass(frozen=True, kw_only=True)
class Language(TrainerWorkload):
    """Perplexity of the validation sentences: the exponential of the mean loss per token.

    Attributes:
        block: tokens in an example.
        layers, width, heads: of the GPT-2.
        train_blocks, validation_blocks: at most so many examples; None: all.
    """

    name: str = "language"
    metric: str = "perplexity"
    higher_is_better: bool = False
    steps: int = 450
    defaults: Mapping[str, Any] = standard(schedule="linear", warmup=0.05, weight_decay=0.01)
    block: int = 32
    batch_size: int = 16
    layers: int = 3
    width: int = 192
    heads: int = 4
    train_blocks: int | None = None
    validation_blocks: int | None = None

    def job(self) -> Job:
        from transformers import GPT2Config, GPT2LMHeadModel

        training, validation, vocabulary = blocks(self.block)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=self.block,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # which its class name does not say
        return Job(
            model=model,
            train=own_labels(training[: self.train_blocks]),
            evaluation=own_labels(validation[: self.validation_blocks]),
            score=perplexity,
            eval_batch_size=self.batch_size,
        )


def perplexity(metrics: Mapping[str, float]) -> float:
    """The exponential of the mean loss; of one that is too large, the largest that is finite."""
    return math.exp(min(metrics["loss"], 700.0))


def own_labels(blocks: torch.Tensor) -> Any:
    """Blocks of tokens as rows, each its own labels: the model shifts them."""
    return Rows(input_ids=blocks, labels=blocks)


def tokens_of(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The tokens of the texts, one after the other."""
    rows = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in row])


def in_blocks(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """(examples, size); what is left at the end is dropped."""
    return tokens[: len(tokens) // size * size].view(-1, size)


@functools.lru_cache(maxsize=2)
def blocks(size: int, least: int = 5) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Training and validation tokens, (examples, size) each, and the size of the vocabulary.

    The vocabulary: 0 for what is unknown, and the tokens that come `least` times in training.
    """
    from glue.data import SAMPLE
    from glue.files import read_columns
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    streams = []
    for split in ("train", "validation"):
        sentences = read_columns(SAMPLE / f"{split}.parquet")["sentence"]
        streams.append(tokens_of(tokenizer, whole_sentences(sentences)))
    known = torch.bincount(streams[0], minlength=len(tokenizer)) >= least
    number = torch.where(known, known.cumsum(0), 0)
    training, validation = (in_blocks(number[tokens], size) for tokens in streams)
    return training, validation, int(known.sum()) + 1


def whole_sentences(phrases: Iterable[str]) -> list[str]:
    """The phrases that are part of no other phrase, the longest first."""
    kept: list[str] = []
    having: dict[str, list[str]] = defaultdict(list)  # word: the kept phrases with it
    for phrase in sorted(set(phrases), key=lambda text: (-len(text), text)):
        words, padded = phrase.split(), f" {phrase} "
        rarest = min(words, key=lambda word: len(having[word]), default="")
        if not any(padded in other for other in having[rarest]):
            kept.append(phrase)
            for word in set(words):
                having[word].append(padded)
    return kept
