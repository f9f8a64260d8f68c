"""The citation graph Cora with its standard split, from one npz file.

Planetoid's own files (github.com/kimiyoung/planetoid) are pickles, which can run any code when
they are read, so they are not read here. Whoever trusts theirs makes the npz of them once, with
PyTorch Geometric for instance:

    data = torch_geometric.datasets.Planetoid("data", "Cora")[0]
    x = scipy.sparse.csr_matrix(data.x.numpy())
    masks = {f"{split}_mask": data[f"{split}_mask"].numpy() for split in ("train", "val", "test")}
    numpy.savez("cora.npz", x_data=x.data, x_indices=x.indices, x_indptr=x.indptr, x_shape=x.shape,
                y=data.y.numpy(), edge_index=data.edge_index.numpy(), **masks)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp
from glue.errors import UsageError

from experiments.workload import folder_of

_UNREADABLE = (
    OSError, KeyError, ValueError, TypeError, IndexError, EOFError, BadZipFile, zlib.error,
    NotImplementedError, RuntimeError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Graph:
    """A graph with node features and labels.

    Attributes:
        features: (nodes, features), sparse, float32, as they are in the data.
        labels: (nodes,) class numbers.
        edges: (2, edges), each undirected edge once or twice.
        train, validation, test: the nodes of each split.
    """

    features: sp.csr_matrix
    labels: np.ndarray
    edges: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def find_graph(data_dir: str | None, name: str = "cora") -> Path:
    """`name`.npz in `data_dir` or in `data_dir`/`name`.

    Raises:
        UsageError: it is not there.
    """
    wanted = f"{name}.npz"
    top = folder_of(data_dir, wanted)
    for folder in (top, top / name):
        if (folder / wanted).is_file():
            return folder / wanted
    pickles = any((folder / f"ind.{name}.graph").is_file() for folder in (top, top / name))
    hint = f"; Planetoid's ind.{name}.* are pickles, which are not read" if pickles else ""
    raise UsageError(
        f"--data_dir {data_dir}: {wanted} is not there, nor in {name}/{hint}; what it holds, and "
        f"how to make it, stands at the head of {__name__.replace('.', '/')}.py"
    )


def load_graph(path: Path) -> Graph:
    """Read what `find_graph` found.

    Raises:
        UsageError: the data cannot be read, or its parts do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            matrix = (data["x_data"].astype(np.float32), data["x_indices"], data["x_indptr"])
            features = sp.csr_matrix(matrix, shape=tuple(data["x_shape"]))
            masks = [data[f"{split}_mask"] for split in ("train", "val", "test")]
            graph = Graph(features, data["y"], data["edge_index"], *map(np.flatnonzero, masks))
        features.check_format(full_check=True)
        nodes = features.shape[0]
        if graph.labels.shape != (nodes,) or any(mask.shape != (nodes,) for mask in masks):
            raise ValueError(f"y and the masks need one entry for each of the {nodes} nodes")
        edges = graph.edges
        if edges.ndim != 2 or len(edges) != 2 or edges.min() < 0 or edges.max() >= nodes:
            raise ValueError(f"edge_index needs two rows of node numbers below {nodes}")
        return graph
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--data_dir: cannot read {path}: {reason}") from error
