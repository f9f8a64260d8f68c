"""Three small networks from random weights, on numbers that are drawn and on the package's sample.

They need no files, and a run takes a few seconds on one core:

- `small-regression`: a perceptron learns a noisy function of 20 numbers, the mean squared error.
- `small-factors`: two embeddings learn a noisy matrix of 300 x 200 from 16,000 of its elements.
- `small-characters`: an LSTM predicts the next character of sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from glue.errors import choose
from torch import Tensor, nn

from experiments.workload import Job, Rows, TrainerWorkload, accuracy, standard, with_loss
from experiments.workloads.language import whole_sentences


@dataclass(frozen=True, kw_only=True)
class Small(TrainerWorkload):
    """The share of the variance that is explained, or of the next characters that are right.

    Attributes:
        task: a name of `_TASKS`.
    """

    metric: str = "explained_variance"
    defaults: Mapping[str, Any] = standard(schedule="linear", warmup=0.05, weight_decay=0.01)
    task: str

    def check(self) -> None:
        choose("task", self.task, _TASKS)

    def job(self) -> Job:
        seed = torch.randint(2**31, ()).item()  # the run's own, for model and order
        torch.manual_seed(0)  # the data are the same in every run
        inputs, labels, held_out, make = _TASKS[self.task]()
        torch.manual_seed(seed)
        return Job(
            model=_Network(make()),
            train=Rows(inputs=inputs[:-held_out], labels=labels[:-held_out]),
            evaluation=Rows(inputs=inputs[-held_out:], labels=labels[-held_out:]),
            compute_metrics=_explained if labels.is_floating_point() else accuracy,
            score=lambda metrics: metrics[self.metric],
        )


Task = tuple[Tensor, Tensor, int, Callable[[], nn.Module]]
"""Inputs and labels by example, how many of them are held out (the last ones), and the network."""


def _regression() -> Task:
    inputs = torch.randn(4000, 20)
    teacher = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5))
    for param in teacher.parameters():
        nn.init.normal_(param, std=0.4)
    labels = teacher(inputs).detach() + 0.1 * torch.randn(4000, 5)
    return inputs, labels, 800, _perceptron


def _factors() -> Task:
    rows, columns = torch.randn(300, 8), torch.randn(200, 8)
    places = torch.stack([torch.randint(300, (20_000,)), torch.randint(200, (20_000,))], dim=1)
    labels = (rows[places[:, 0]] * columns[places[:, 1]]).sum(1) / 8**0.5
    return places, labels + 0.3 * torch.randn(20_000), 4000, _Factors


def _characters() -> Task:
    from glue.data import SAMPLE
    from glue.files import read_columns

    sentences = read_columns(SAMPLE / "train.parquet")["sentence"]
    text = " ".join(whole_sentences(sentences))[: 65 * 5000]
    known = sorted(set(text))
    number = {character: place for place, character in enumerate(known)}
    blocks = torch.tensor([number[character] for character in text]).view(-1, 65)
    return blocks[:, :-1], blocks[:, 1:], 400, lambda: _Characters(len(known))


_TASKS: dict[str, Callable[[], Task]] = {
    "regression": _regression,
    "factors": _factors,
    "characters": _characters,
}


def _perceptron() -> nn.Module:
    hidden = nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(128, 5))


class _Factors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(300, 16), nn.Embedding(200, 16)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, places: Tensor) -> Tensor:
        return (self.rows(places[:, 0]) * self.columns(places[:, 1])).sum(1)


class _Characters(nn.Module):
    def __init__(self, known: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(known, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.output = nn.Linear(128, known)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(tokens))[0])


class _Network(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return with_loss(self.network(inputs), labels)


def _explained(outputs: Any) -> dict[str, float]:
    left = ((outputs.predictions - outputs.label_ids) ** 2).mean()
    return {"explained_variance": float(1 - left / outputs.label_ids.var())}
