"""`_ext.pyi` says what the native module has."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import mlx_entropy
from mlx_entropy import _ext

STUB = Path(mlx_entropy.__file__).with_name("_ext.pyi")
Parameters = dict[str, tuple[str, bool]]


def parameters(function: ast.FunctionDef) -> Parameters:
    """Kind of each parameter by name, and whether it may be left out."""
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    found: Parameters = {}
    for i, each in enumerate(plain):
        optional = i >= len(plain) - len(given.defaults)
        found[each.arg] = ("plain", optional)
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found[each.arg] = ("keyword", default is not None)
    return found


def native(function: Any) -> Parameters:
    """The same of a function of nanobind's, from its signature."""
    ((signature, *_),) = function.__nb_signature__
    # Defaults are numbered.
    text = re.sub(r"\\\d+", "None", signature)
    (parsed,) = ast.parse(f"{text}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    return parameters(parsed)


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def definitions(body: list[ast.stmt], kind: type) -> dict[str, Any]:
    return {node.name: node for node in body if isinstance(node, kind)}


def test_functions() -> None:
    body = ast.parse(STUB.read_text()).body
    functions = definitions(body, ast.FunctionDef)
    classes = definitions(body, ast.ClassDef)
    assert public(dir(_ext)) == functions.keys() | classes.keys()
    for name, stub in functions.items():
        assert parameters(stub) == native(getattr(_ext, name)), name


def test_classes() -> None:
    body = ast.parse(STUB.read_text()).body
    for name, stub in definitions(body, ast.ClassDef).items():
        real = getattr(_ext, name)
        members = definitions(stub.body, ast.FunctionDef)
        assert public(dir(real)) == public(members), name
        for method in members.keys() & {"__init__", "__call__"}:
            found = native(getattr(real, method))
            assert parameters(members[method]) == found, (name, method)
