"""Cora with the graph convolutional network of Kipf and Welling (arXiv 1609.02907).

Two layers, 16 hidden units, dropout 0.5, 200 epochs without early stopping. The L2 penalty of
5e-4 on the first layer is part of the loss, as in Kipf's code, so that it is the same for every
optimizer; the setting `weight_decay` is 0. The paper's target is 79.80 % test accuracy. One run
takes 1 s on one core.

The data is one npz file. Planetoid's own files (github.com/kimiyoung/planetoid) are pickles, which
can run any code when they are read. Whoever trusts theirs makes the npz of them once, with PyTorch
Geometric for instance:

    data = torch_geometric.datasets.Planetoid("data", "Cora")[0]
    x = scipy.sparse.csr_matrix(data.x.numpy())
    masks = {f"{split}_mask": data[f"{split}_mask"].numpy() for split in ("train", "val", "test")}
    numpy.savez("cora.npz", x_data=x.data, x_indices=x.indices, x_indptr=x.indptr, x_shape=x.shape,
                y=data.y.numpy(), edge_index=data.edge_index.numpy(), **masks)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from glue.errors import UsageError, one_line
from torch import Tensor, nn

from experiments.recording import run_loop
from experiments.workload import Workload, folder_of


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
    steps: int = 200
    hidden: int = 16
    dropout: float = 0.5
    l2: float = 5e-4

    def check(self) -> None:
        find_graph(self.data_dir)

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        settings = self.settings(contender, settings)
        graph, features, adjacency = _tensors(find_graph(self.data_dir))
        labels, train, validation, test = map(torch.from_numpy, graph[2:])
        torch.manual_seed(seed)
        model = GCN(features.shape[1], self.hidden, int(labels.max()) + 1, self.dropout)

        def loss() -> Tensor:
            model.train()
            error = F.cross_entropy(model(features, adjacency)[train], labels[train])
            return error + 0.5 * self.l2 * model.first.square().sum()

        def score() -> tuple[float, dict[str, float]]:
            model.eval()
            hits = (model(features, adjacency).argmax(dim=1) == labels).double()
            accuracy, on_validation = hits[test].mean().item(), hits[validation].mean().item()
            return accuracy, {"accuracy": accuracy, "validation_accuracy": on_validation}

        every = max(1, self.steps // 20)
        return run_loop(model.parameters(), loss, score, contender, settings, self.steps, every)


class GCN(nn.Module):
    """Two graph convolutions, Â·relu(Â·X·W₁ + b₁)·W₂ + b₂, with dropout before each."""

    def __init__(self, features: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        glorot = nn.init.xavier_uniform_
        self.first = nn.Parameter(glorot(torch.empty(features, hidden)))
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(glorot(torch.empty(hidden, classes)))
        self.second_bias = nn.Parameter(torch.zeros(classes))
        self.dropout = dropout

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        """Logits (nodes, classes) from sparse (nodes, features) and sparse Â (nodes, nodes)."""
        if self.training:  # of the values that are not 0: the others stay 0 anyway
            values = F.dropout(features.values(), self.dropout)
            features = _sparse(features.indices(), values, features.shape, is_coalesced=True)
        hidden = adjacency @ (features @ self.first) + self.first_bias
        hidden = F.dropout(F.relu(hidden), self.dropout, self.training)
        return adjacency @ (hidden @ self.second) + self.second_bias


_sparse = functools.partial(torch.sparse_coo_tensor, check_invariants=False)


class Graph(NamedTuple):
    """Sparse (nodes, features); (2, edges), each once or twice; (nodes,); nodes of each split."""

    features: sp.csr_matrix
    edges: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def find_graph(data_dir: str | None) -> Path:
    """cora.npz in `data_dir` or in `data_dir`/cora; a UsageError if it is not there."""
    top = folder_of(data_dir, "cora.npz")
    for folder in (top, top / "cora"):
        if (folder / "cora.npz").is_file():
            return folder / "cora.npz"
    pickles = [*top.glob("ind.cora.graph"), *top.glob("cora/ind.cora.graph")]
    hint = "; Planetoid's ind.cora.* are pickles, which are not read" if pickles else ""
    raise UsageError(
        f"--data_dir {data_dir}: cora.npz is not there, nor in cora/{hint}; what it holds, and "
        f"how to make it, stands at the head of {__name__.replace('.', '/')}.py"
    )


def load_graph(path: Path) -> Graph:
    """The file of `find_graph`; a UsageError if its parts cannot be read or do not fit together."""
    # NumPy, zipfile, zlib and SciPy raise a dozen kinds
    with one_line(Exception, of=f"--data_dir: cannot read {path}: "):
        with np.load(path, allow_pickle=False) as data:
            matrix = (data["x_data"].astype(np.float32), data["x_indices"], data["x_indptr"])
            features = sp.csr_matrix(matrix, shape=tuple(data["x_shape"]))
            masks = [data[f"{split}_mask"] for split in ("train", "val", "test")]
            graph = Graph(features, data["edge_index"], data["y"], *map(np.flatnonzero, masks))
        features.check_format(full_check=True)
        nodes, edges = features.shape[0], graph.edges
        if any(each.shape != (nodes,) for each in (graph.labels, *masks)):
            raise ValueError(f"y and the masks need one entry for each of the {nodes} nodes")
        if edges.ndim != 2 or len(edges) != 2 or edges.min() < 0 or edges.max() >= nodes:
            raise ValueError(f"edge_index needs two rows of node numbers below {nodes}")
        return graph


@functools.lru_cache(maxsize=2)
def _tensors(path: Path) -> tuple[Graph, Tensor, Tensor]:
    """The graph, its row-normalised features and D^-½(A + I)D^-½, both sparse."""
    graph = load_graph(path)
    features = graph.features.tocoo()
    features.data /= np.maximum(np.asarray(graph.features.sum(axis=1)).ravel(), 1e-12)[features.row]
    nodes = len(graph.labels)
    loops = np.arange(nodes)
    pairs = np.concatenate([graph.edges, graph.edges[::-1], [loops, loops]], axis=1)
    rows, columns = np.unique(pairs, axis=1)  # an edge that is given twice counts once
    scale = np.bincount(rows, minlength=nodes) ** -0.5
    adjacency = sp.coo_matrix((scale[rows] * scale[columns], (rows, columns)), (nodes, nodes))
    return graph, _tensor(features), _tensor(adjacency)


def _tensor(matrix: sp.coo_matrix) -> Tensor:
    indices = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    return _sparse(indices, values, matrix.shape).coalesce()
