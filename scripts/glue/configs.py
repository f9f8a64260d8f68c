"""YAML and JSON files of settings, read so that nothing in them is overlooked or explodes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from glue.errors import UsageError

_LARGEST = 64 * 2**10
"""Bytes. Our files have one or two thousand; YAML's parser takes about a second for this many."""
_DEEPEST = 50


def read_settings(path: str | Path) -> dict[Any, Any]:
    """The `name: value` lines of a .json file, or of a YAML file by any other name.

    Raises:
        UsageError: the file cannot be read, is too large, is not what its name says, has a name
            twice or an alias, or holds something else than `name: value`.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    kind = "JSON" if str(path).lower().endswith(".json") else "YAML"
    if len(data) > _LARGEST:
        raise UsageError(f"{path}: larger than {_LARGEST:,} bytes: no file of settings")
    try:
        text = data.decode("utf-8-sig")
        if kind == "JSON":
            values = json.loads(text, object_pairs_hook=no_doubles)
        else:
            values = yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError as error:
        raise UsageError(f"{path}: not {kind}: nested too deeply") from error
    except (ValueError, yaml.YAMLError, TypeError) as error:  # TypeError: a name that is a list
        raise UsageError(f"{path}: not {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected lines of `name: value`, got {type(values).__name__}")
    return values


def read_with_base(path: str | Path) -> dict[Any, Any]:
    """As `read_settings`; what it does not say is in the file beside it that its `base:` names.

    Raises:
        UsageError: as there, for both files; and for a base that has a base.
    """
    values = read_settings(path)
    if "base" not in values:
        return values
    if not isinstance(name := values.pop("base"), str) or not name:
        raise UsageError(f"{path}: base {name}: give one file, or leave the line out")
    base = Path(path).parent / name
    shared = read_settings(base)
    if "base" in shared:
        raise UsageError(
            f"{base}: is the base of {path}, so it cannot have a base of its own; for the GLUE "
            f"scripts remove `base:` from {path}, and give both: {base} {path}"
        )
    return {**shared, **values}


def no_doubles(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Values by name; a ValueError for a name that is there twice: a dict would keep the last."""
    refuse_doubles([name for name, _ in pairs], "{!r} is there twice")
    return dict(pairs)


def refuse_doubles(names: Iterable[Any], message: str) -> None:
    """Raises a ValueError with `message.format(NAME)` for the first name that is there twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(message.format(name))


class _Loader(yaml.SafeLoader):
    """Refuses aliases, by which a short file can stand for gigabytes, and double names; and numbers
    to the base 8 or 60, which nobody means."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > _DEEPEST:  # the scanner's time grows with the square
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor} repeats another part, which is not taken; write it out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        return no_doubles(self.construct_pairs(node, deep))

    def construct_number(self, node: Any) -> int | float:
        kind = "int" if node.tag.endswith("int") else "float"
        value = getattr(self, f"construct_yaml_{kind}")(node)
        if re.fullmatch(r"[-+]?(0[0-7_]+|.*:.*)", node.value):
            problem = f"{node.value} means {value} in YAML; write that, or quote it"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
