"""Cora with the graph convolutional network of Kipf and Welling (arXiv 1609.02907).

Two layers, 16 hidden units, dropout 0.5, 200 epochs without early stopping. The L2 penalty of
5e-4 on the first layer is part of the loss, as in Kipf's code, so that it is the same for every
optimizer; the setting `weight_decay` is 0. The paper's target is 79.80 % test accuracy. One run
takes 1 s on one core.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.loop import run_loop
from experiments.planetoid import Graph, find_graph, load_graph
from experiments.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Cora(Workload):
    """Test accuracy after the last epoch. `metrics` also has `validation_accuracy`, to tune by.

    Attributes:
        hidden: width of the hidden layer.
        dropout: of features and hidden units.
        l2: the penalty l2/2 · ‖W‖² of the first layer.
    """

    name: str = "cora"
    metric: str = "accuracy"
    higher_is_better: bool = True
    steps: int = 200
    hidden: int = 16
    dropout: float = 0.5
    l2: float = 5e-4

    def check(self) -> None:
        find_graph(self.data_dir)

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        settings = self.settings(contender, settings)
        graph, features, adjacency = _tensors(str(find_graph(self.data_dir)))
        labels = torch.from_numpy(graph.labels)
        train, validation, test = map(torch.from_numpy, (graph.train, graph.validation, graph.test))
        torch.manual_seed(seed)
        model = GCN(features.shape[1], self.hidden, int(graph.labels.max()) + 1, self.dropout)

        def loss() -> Tensor:
            model.train()
            error = F.cross_entropy(model(features, adjacency)[train], labels[train])
            return error + 0.5 * self.l2 * model.first.square().sum()

        def score() -> tuple[float, dict[str, float]]:
            model.eval()
            hits = (model(features, adjacency).argmax(dim=1) == labels).double()
            accuracy = hits[test].mean().item()
            return accuracy, {
                "accuracy": accuracy, "validation_accuracy": hits[validation].mean().item()
            }  # fmt: skip

        return run_loop(
            model.parameters(), loss, score, contender, settings, self.steps,
            max(1, self.steps // 20),
        )  # fmt: skip


class GCN(nn.Module):
    """Two graph convolutions, Â·relu(Â·X·W₁ + b₁)·W₂ + b₂, with dropout before each."""

    def __init__(self, features: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Parameter(_glorot(features, hidden))
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(_glorot(hidden, classes))
        self.second_bias = nn.Parameter(torch.zeros(classes))
        self.dropout = dropout

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        """Logits (nodes, classes) from sparse (nodes, features) and sparse Â (nodes, nodes)."""
        if self.training:  # of the values that are not 0: the others stay 0 anyway
            values = F.dropout(features.values(), self.dropout)
            features = torch.sparse_coo_tensor(
                features.indices(), values, features.shape, is_coalesced=True,
                check_invariants=False,
            )  # fmt: skip
        hidden = adjacency @ (features @ self.first) + self.first_bias
        hidden = F.dropout(F.relu(hidden), self.dropout, self.training)
        return adjacency @ (hidden @ self.second) + self.second_bias


def _glorot(rows: int, columns: int) -> Tensor:
    bound = math.sqrt(6 / (rows + columns))
    return torch.empty(rows, columns).uniform_(-bound, bound)


@functools.lru_cache(maxsize=2)
def _tensors(path: str) -> tuple[Graph, Tensor, Tensor]:
    """The graph, its row-normalised features and D^-½(A + I)D^-½, both sparse."""
    graph = load_graph(Path(path))
    matrix = graph.features.tocoo()
    sums = np.maximum(np.asarray(graph.features.sum(axis=1)).ravel(), 1e-12)
    features = _sparse(matrix.row, matrix.col, matrix.data / sums[matrix.row], matrix.shape)
    nodes = len(graph.labels)
    loops = np.arange(nodes)
    rows, columns = np.concatenate([graph.edges, graph.edges[::-1], [loops, loops]], axis=1)
    edges = np.unique(rows * nodes + columns)  # an edge that is given twice counts once
    rows, columns = edges // nodes, edges % nodes
    scale = np.bincount(rows, minlength=nodes) ** -0.5
    return graph, features, _sparse(rows, columns, scale[rows] * scale[columns], (nodes, nodes))


def _sparse(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: Any) -> Tensor:
    indices = torch.from_numpy(np.stack([rows, columns]).astype(np.int64))
    numbers = torch.from_numpy(values.astype(np.float32))
    return torch.sparse_coo_tensor(indices, numbers, shape, check_invariants=True).coalesce()
