"""Golden cases: numbers of the published code, and the files that its authors would have written.

Cases are whatever lies in ``$GEO3D_GOLDEN/public``; each ``.json`` says how to make the checkpoint and what to feed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = os.environ.get("GEO3D_GOLDEN")


def case_paths() -> list[Path]:
    """The ``.json`` of every case, sorted by name; empty where no golden folder is given."""
    return sorted(Path(FOLDER, "public").glob("*.json")) if FOLDER else []


@dataclass
class GoldenCase:
    """One case: its description, and its tensors."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> GoldenCase:
        return cls(path, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))

    @staticmethod
    def kind_of(path: Path) -> str:
        """The kind of a case, without reading its tensors."""
        return json.loads(path.read_text())["kind"]

    def state(self) -> dict[str, Tensor]:
        """The case's weights under their published names."""
        root, recipe = self.path.parents[1], golden_recipe(self.path)
        keep = {name: self.tensors[f"keep.{name}"] for name in self.meta.get("keep", [])}
        state = recipe.state_dict(root / self.meta["layout"], self.meta["salt"], keep)
        for alias, source in self.meta.get("aliases", {}).items():
            state[alias] = state[source]
        prefix = self.meta.get("key_prefix") or ""
        return {prefix + name: value for name, value in state.items()}

    def write_checkpoint(self, path: Path) -> Path:
        """Write the case's weights as the authors' file would hold them."""
        torch.save(_fill_container(self.meta["container"], self.state()), path)
        return path


def golden_recipe(path: Path) -> ModuleType:
    """The module beside the cases that draws their weights; of the path of a case."""
    spec = importlib.util.spec_from_file_location("golden_recipe", path.parents[1] / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def _fill_container(container: Any, state: dict[str, Tensor]) -> Any:
    """The published container with the state dict where the json marks its place."""
    if isinstance(container, str) and container.startswith("<state dict of the layout"):
        return state
    if isinstance(container, dict):
        filled = {k: _fill_container(v, state) for k, v in container.items() if k != "type"}
        return argparse.Namespace(**filled) if container.get("type") == "argparse.Namespace" else filled
    return container
