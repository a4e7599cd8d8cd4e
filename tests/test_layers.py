"""Imports run down the list of rooms only, as the design has it; read off the source, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
#: Rooms from above to below. A room imports itself and those below it, none beside it.
LEVELS = (
    ("tools",),
    ("cli",),
    ("visualize", "predict"),
    ("recipes", "probe", "interop"),
    ("train",),
    ("methods",),
    ("samples", "reconstruction", "inference"),
    ("models", "datasets"),
    ("viz", "nn"),
    ("ops",),
    ("checkpoints", "geometry"),
)
#: Single files below all rooms, which know none of them.
BELOW_ALL = (
    "config",
    "errors",
    "linear_svm",
    "metrics",
    "progress",
    "random",
    "registry",
    "spread",
    "worker_server",
    "writing",
)
#: Rooms that are held closer than their place in the list -> the rooms that they may import.
CLOSER = {"viz": {"viz", "geometry"}}
#: (file, imported room) that the list does not allow, with the reason; to be emptied.
KNOWN_EXCEPTIONS: dict[tuple[str, str], str] = {}

_RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}


def _sources() -> dict[Path, str]:
    """Python file -> its room; `geo3d/__init__.py` and `geo3d/__main__.py` are the face and in none."""
    found = {path: path.relative_to(_ROOT / "geo3d").parts[0].removesuffix(".py") for path in _files("geo3d")}
    found |= dict.fromkeys(_files("datasets"), "datasets") | dict.fromkeys(_files("tools"), "tools")
    return {path: room for path, room in found.items() if room not in ("__init__", "__main__")}


def _files(folder: str) -> list[Path]:
    return sorted((_ROOT / folder).rglob("*.py"))


def _face() -> dict[str, str]:
    """Name that `geo3d` itself offers -> the room it comes from."""
    tree = ast.parse((_ROOT / "geo3d" / "__init__.py").read_text())
    (table,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_FACE"
    )
    return {name: module.split(".")[1] for name, module in table.items()}


def _imported(source: str) -> Iterator[str]:
    """Rooms and files of geo3d that a source imports when it runs, in functions too; names of the face as their room.

    What is imported for type checking alone does not count.
    """
    face = _face()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"relative import: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module == "geo3d":
            modules = [f"geo3d.{face.get(alias.name, alias.name)}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        yield from (module.split(".")[1] for module in modules if module.startswith("geo3d."))


def _allowed(room: str, imported: str) -> bool:
    if imported == "__version__":
        return True
    if room in BELOW_ALL:
        return imported in BELOW_ALL
    if imported in BELOW_ALL:
        return True
    if room in CLOSER:
        return imported in CLOSER[room]
    return imported == room or _RANK[room] < _RANK[imported]


def _violations() -> set[tuple[str, str]]:
    return {
        (path.relative_to(_ROOT).as_posix(), imported)
        for path, room in _sources().items()
        for imported in _imported(path.read_text())
        if not _allowed(room, imported)
    }


def test_every_source_has_its_place_in_the_list() -> None:
    rooms = set(_sources().values())
    assert rooms <= {*_RANK, *BELOW_ALL}
    assert rooms >= {*BELOW_ALL, "tools", "cli", "recipes", "train", "datasets", "geometry"}


def test_imports_run_down_the_list_only() -> None:
    assert _violations() == set(KNOWN_EXCEPTIONS)


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import geo3d", []),
        ("import geo3d.train.trainer, numpy", ["train"]),
        ("from geo3d.recipes import pretrain", ["recipes"]),
        ("from geo3d import create_model, ops, __version__", ["models", "ops", "__version__"]),
        ("def f():\n    from geo3d.cli import main", ["cli"]),
        ("try:\n    import geo3d.viz\nexcept ImportError:\n    pass", ["viz"]),
        ("if TYPE_CHECKING:\n    import geo3d.cli\nelse:\n    import geo3d.nn", ["nn"]),
        ("if typing.TYPE_CHECKING:\n    from geo3d.train import trainer", []),
        ("import torch\nfrom geo3dx.cli import main", []),
    ],
)
def test_what_a_source_imports_is_found(source: str, imported: list[str]) -> None:
    assert sorted(_imported(source)) == sorted(imported)


@pytest.mark.parametrize(
    ("room", "imported", "allowed"),
    [
        ("tools", "cli", True),
        ("cli", "tools", False),
        ("cli", "probe", True),
        ("probe", "recipes", False),
        ("visualize", "recipes", True),
        ("recipes", "visualize", False),
        ("train", "recipes", False),
        ("train", "methods", True),
        ("methods", "train", False),
        ("models", "datasets", False),
        ("datasets", "viz", True),
        ("nn", "ops", True),
        ("ops", "nn", False),
        ("viz", "methods", False),
        ("viz", "ops", False),
        ("viz", "geometry", True),
        ("viz", "errors", True),
        ("geometry", "errors", True),
        ("errors", "geometry", False),
        ("config", "errors", True),
    ],
)
def test_what_the_list_allows(room: str, imported: str, allowed: bool) -> None:
    assert _allowed(room, imported) is allowed
