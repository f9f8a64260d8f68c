"""The citation graph Cora with its standard split, from one npz or from the Planetoid files.

The Planetoid files (github.com/kimiyoung/planetoid) are pickles, which can run any code when they
are read. Here `restricted_pickle` reads them, which knows arrays, sparse matrices and dicts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp

from dwmgrad.experiments.restricted_pickle import load_arrays
from dwmgrad.experiments.workload import folder_of
from dwmgrad.glue.errors import UsageError

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph")
VALIDATION = 500
_UNREADABLE = (
    OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, EOFError, BadZipFile,
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
    """`name`.npz, or the folder of the files ind.`name`.*, in `data_dir` or in `data_dir`/`name`.

    Raises:
        UsageError: neither is there.
    """
    wanted = f"{name}.npz or ind.{name}.x, ind.{name}.graph, ..."
    top = folder_of(data_dir, wanted)
    for folder in (top, top / name):
        if (folder / f"{name}.npz").is_file():
            return folder / f"{name}.npz"
        if (folder / f"ind.{name}.graph").is_file():
            return folder
    raise UsageError(f"--data_dir {data_dir}: neither {wanted} is there, nor in {name}/")


def load_graph(path: Path, name: str = "cora") -> Graph:
    """Read what `find_graph` found.

    Raises:
        UsageError: the data cannot be read, or holds something else than arrays.
    """
    try:
        return _planetoid(path, name) if path.is_dir() else _npz(path)
    except _UNREADABLE as error:
        raise UsageError(f"--data_dir: cannot read {path}: {error}") from error


def _npz(path: Path) -> Graph:
    with np.load(path, allow_pickle=False) as data:
        matrix = (data["x_data"], data["x_indices"], data["x_indptr"])
        return Graph(
            sp.csr_matrix(matrix, shape=tuple(data["x_shape"])),
            data["y"],
            data["edge_index"],
            *(np.flatnonzero(data[f"{split}_mask"]) for split in ("train", "val", "test")),
        )


def _planetoid(folder: Path, name: str) -> Graph:
    """The rows of allx, then those of tx at the places that the test index says (Kipf's gcn)."""
    part = {each: load_arrays(folder / f"ind.{name}.{each}") for each in PARTS}
    order = np.loadtxt(folder / f"ind.{name}.test.index", dtype=np.int64, ndmin=1)
    features = sp.vstack((part["allx"], part["tx"])).tolil()
    labels = np.vstack((part["ally"], part["ty"]))
    if len(order) != part["tx"].shape[0] or order.max() >= features.shape[0]:
        raise ValueError("the test index does not fit the features")
    place = np.sort(order)
    features[order], labels[order] = features[place], labels[place]
    edges = [(u, v) for u, others in part["graph"].items() for v in others]
    known = len(part["y"])
    return Graph(
        features.tocsr().astype(np.float32),
        labels.argmax(axis=1),
        np.array(edges, dtype=np.int64).T,
        np.arange(known),
        np.arange(known, known + VALIDATION),
        place,
    )
