"""Cora's file: what is read of it, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from experiments.workloads.cora import _tensors, find_graph, load_graph
from glue.errors import UsageError

from .conftest import a_graph


def test_the_adjacency_is_normalised_with_loops(cora_dir):
    graph, features, adjacency = _tensors(find_graph(str(cora_dir)))
    dense = adjacency.to_dense().numpy()
    plain = np.eye(len(graph.labels), dtype=np.float64)
    plain[graph.edges[0], graph.edges[1]] = plain[graph.edges[1], graph.edges[0]] = 1
    root = plain.sum(axis=1) ** -0.5
    np.testing.assert_allclose(dense, root[:, None] * plain * root, rtol=1e-6)
    np.testing.assert_allclose(features.to_dense().sum(dim=1), 1, rtol=1e-6)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_what_cannot_be_read_is_told_in_one_line(content, tmp_path):
    (tmp_path / "cora.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read .*cora.npz"):
        load_graph(find_graph(str(tmp_path)))


class _Trace:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("whole", [True, False])
def test_pickles_are_not_read(whole, tmp_path):
    evil = _Trace(tmp_path / "trace")
    if whole:
        (tmp_path / "cora.npz").write_bytes(pickle.dumps(evil))
    else:
        np.savez(tmp_path / "cora.npz", **{**a_graph(), "y": np.array([evil], dtype=object)})
    with pytest.raises(UsageError, match="cannot read .*cora.npz.*allow_pickle"):
        load_graph(find_graph(str(tmp_path)))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x_indices", np.full(8000, 10**6), "x_indices|ind"),
        ("x_indptr", np.array([0, 1]), "index|indptr"),
        ("edge_index", np.array([[0], [10**6]]), "edge_index"),
        ("edge_index", np.array([0, 1]), "edge_index"),
        ("y", np.zeros(3, dtype=np.int64), "one entry for each"),
        ("val_mask", np.ones(7, dtype=bool), "one entry for each"),
        ("x_data", np.zeros(3, dtype=[("a", "f4"), ("b", "f4")]), "cannot read"),
    ],
)
def test_parts_that_do_not_fit(name, value, message, tmp_path):
    """Sparse code of SciPy and PyTorch would read beyond an array without a word."""
    np.savez(tmp_path / "cora.npz", **{**a_graph(), name: value})
    with pytest.raises(UsageError, match=message):
        load_graph(find_graph(str(tmp_path)))


def test_a_folder_without_the_graph_is_told(tmp_path):
    for wrong in (None, str(tmp_path / "no"), str(tmp_path)):
        with pytest.raises(UsageError, match="--data_dir"):
            find_graph(wrong)
    (tmp_path / "ind.cora.graph").touch()
    with pytest.raises(UsageError, match="pickles, which are not read"):
        find_graph(str(tmp_path))
