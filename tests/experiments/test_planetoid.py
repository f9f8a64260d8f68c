"""Cora's two forms, and pickles that want more than arrays."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from dwmgrad.experiments.planetoid import find_graph, load_graph
from dwmgrad.experiments.restricted_pickle import Refused, load_arrays
from dwmgrad.experiments.workloads.cora import _tensors
from dwmgrad.glue.errors import UsageError


def test_planetoid_files_hold_the_same_graph_as_the_npz(cora_dir, planetoid_dir):
    ours, theirs = load_graph(find_graph(str(cora_dir))), load_graph(find_graph(str(planetoid_dir)))
    assert (ours.features != theirs.features).nnz == 0
    for name in ("labels", "train", "validation", "test"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    _, _, a = _tensors(str(find_graph(str(cora_dir))))
    _, _, b = _tensors(str(find_graph(str(planetoid_dir))))
    np.testing.assert_array_equal(a.to_dense(), b.to_dense())  # each edge there twice, here once


def test_the_adjacency_is_normalised_with_loops(cora_dir):
    graph, features, adjacency = _tensors(str(find_graph(str(cora_dir))))
    dense = adjacency.to_dense().numpy()
    plain = np.eye(len(graph.labels), dtype=np.float64)
    plain[graph.edges[0], graph.edges[1]] = plain[graph.edges[1], graph.edges[0]] = 1
    root = plain.sum(axis=1) ** -0.5
    np.testing.assert_allclose(dense, root[:, None] * plain * root, rtol=1e-6)
    np.testing.assert_allclose(features.to_dense().sum(dim=1), 1, rtol=1e-6)


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "value",
    [
        _Call(os.system, "touch ran"),
        _Call(eval, "open('ran', 'w')"),
        _Call(getattr, "text", "upper"),
        _Call(np.load, "ran"),
        {"deep": [_Call(exec, "open('ran', 'w')")]},
    ],
)
def test_a_pickle_that_calls_something_is_refused_before_it_does(
    value, protocol, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(Refused, match="is refused"):
        load_arrays(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()


def test_an_admitted_name_does_not_open_a_door(tmp_path):
    """`scipy.sparse.os`, a dotted name, is found by an ordinary unpickler."""
    for data in (
        b"\x80\x04\x8c\x0cscipy.sparse\x8c\x0acsr_matrix\x93.",  # admitted, the control
        b"\x80\x04\x8c\x05numpy\x8c\x0andarray.os\x93.",
        b"\x80\x04\x8c\x0cscipy.sparse\x8c\x0dcsr_matrix.os\x93.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"Poutside\n.",
        b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.",
    ):
        (tmp_path / "file").write_bytes(data)
        if b"csr_matrix\x93" in data:
            load_arrays(tmp_path / "file")
        else:
            with pytest.raises(Refused):
                load_arrays(tmp_path / "file")


def test_python_2_wrote_sparse_matrices_like_this(tmp_path):
    """Protocol 0 of Python 2: `copy_reg`, and bytes that are text here."""
    text = (
        b"ccopy_reg\n_reconstructor\np0\n(cscipy.sparse.csr\ncsr_matrix\np1\nc__builtin__\nobject\n"
        b"p2\nNtp3\nRp4\n(dp5\nS'_shape'\np6\n(I1\nI2\ntp7\ns"
    )
    for name, values, kind in (("data", "f4", 1.5), ("indices", "i4", 1), ("indptr", "i4", None)):
        array = np.array([kind] if kind is not None else [0, 1], dtype=values)
        raw = "".join(f"\\x{byte:02x}" for byte in array.tobytes()).encode()
        text += (
            b"S'" + name.encode() + b"'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
            b"(I0\ntS'b'\ntR(I1\n(I" + str(len(array)).encode() + b"\ntcnumpy\ndtype\n(S'"
            + values.encode() + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'"
            + raw + b"'\ntbs"
        )  # fmt: skip
    (tmp_path / "x").write_bytes(text + b"b.")
    np.testing.assert_array_equal(load_arrays(tmp_path / "x").toarray(), [[0, 1.5]])


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_what_cannot_be_read_is_told_in_one_line(content, tmp_path):
    (tmp_path / "cora.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read .*cora.npz"):
        load_graph(find_graph(str(tmp_path)))


def test_a_folder_without_the_graph_is_told(tmp_path):
    for wrong in (None, str(tmp_path / "no"), str(tmp_path)):
        with pytest.raises(UsageError, match="--data_dir"):
            find_graph(wrong)
