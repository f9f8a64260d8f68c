"""Reads pickles that hold arrays, and refuses all others before they have done anything.

A pickle names classes and functions, which are imported and called while it is read. Here a name
is looked up in one short table and nowhere else, so nothing can be reached that is not in it.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp


class Refused(ValueError):
    """The file asks for something that is not in the table."""


def load_arrays(path: Path) -> Any:
    """Unpickle numpy arrays, sparse matrices in CSR form, numbers, text, lists and dicts.

    Text of Python 2 is read as Latin-1.

    Raises:
        Refused: the file names any other class or function; it was neither imported nor called.
        ValueError: it is no pickle.
    """
    with path.open("rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path}: {error}") from error


def _new_matrix(kind: type, base: type, state: Any) -> Any:
    """What Python 2's protocols 0 and 1 call for a plain object: an empty one, filled later."""
    if kind is not sp.csr_matrix or base is not object or state is not None:
        raise Refused("an object that is not a sparse matrix: the file is refused")
    return object.__new__(kind)


def _encode(text: str, encoding: str) -> bytes:
    """What protocols 0 to 2 of Python 3 call for the bytes of an array."""
    if encoding != "latin1":
        raise Refused(f"bytes in {encoding}: the file is refused")
    return text.encode("latin1")


def _multiarray() -> Any:
    """numpy's core, which moved in numpy 2."""
    return (np._core if hasattr(np, "_core") else np.core).multiarray  # type: ignore[attr-defined]


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_CSR = ("scipy.sparse.csr", "scipy.sparse._csr", "scipy.sparse")
_BUILTINS = ("__builtin__", "builtins")
_TABLE: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _multiarray()._reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _multiarray().scalar for module in _MULTIARRAY},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(module, "csr_matrix"): sp.csr_matrix for module in _CSR},
    ("collections", "defaultdict"): collections.defaultdict,
    **{(module, "list"): list for module in _BUILTINS},
    **{(module, "object"): object for module in _BUILTINS},
    **{(module, "_reconstructor"): _new_matrix for module in ("copy_reg", "copyreg")},
    ("_codecs", "encode"): _encode,
}
"""(module, name) in the file, as old and new versions write it: what is taken for it."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _TABLE:
            raise Refused(f"{module}.{name} is not an array: the file is refused")
        return _TABLE[module, name]

    def persistent_load(self, key: Any) -> Any:
        raise Refused("it refers to something outside: the file is refused")
