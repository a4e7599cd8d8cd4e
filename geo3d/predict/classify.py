"""A trained network asked what objects or images are: classes with their probabilities, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image

from geo3d.datasets import read_cloud
from geo3d.datasets.image_files import read_photo
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least
from geo3d.methods.classify import class_logits
from geo3d.models import Encoder
from geo3d.predict.networks import load_network
from geo3d.writing import prepare_place, write_text

#: Classifiers whose authors' files do not say which of them they hold.
_AUTHORS = ("i2p_mae_classifier",)


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Name the class of objects or images."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE ...")]
    """Objects, as files of points or meshes (PLY, OFF, OBJ, ...), for a network over points or voxels; or images."""
    checkpoint: Path
    """Run folder of `geo3d finetune classify`, one of its checkpoints, the authors' classifier of I2P-MAE, or
    hf://owner/repository/file[@revision]."""
    out: Path = Path("classes.json")
    """File to write, .json or .csv."""
    top: int = 5
    """Classes that are told of each file, the most probable first (count)."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda or cuda:1."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "top")
        if not self.files:
            raise InputError("files: give one or more objects or images")
        if self.out.suffix.lower() not in (".json", ".csv"):
            raise InputError(f"out: {self.out} should end in .json or .csv")


def predict(config: ClassifyOptions) -> str:
    """Ask the network of each file and write what it says.

    Returns:
        A line a file, and where the rest is.

    Raises:
        InputError: checkpoint or file cannot be read, or nothing can be written where it is to be.
    """
    prepare_place(config.out)
    model = load_network(config.checkpoint, "classify", _AUTHORS, "names the class of objects or images", config.device)
    found = [_asked(model, file, config.top) for file in config.files]
    write_text(
        config.out,
        _csv(found, config.top) if config.out.suffix.lower() == ".csv" else json.dumps(found, indent=1) + "\n",
    )
    lines = [f"{one['file']}: {', '.join(_said(each) for each in one['top'][:2])}" for one in found]
    return "\n".join([*lines, f"classes and probabilities: {config.out}"])


def _asked(model: Encoder, file: Path, top: int) -> dict[str, Any]:
    """What the network says of a file."""
    try:
        logits = class_logits(model, [_read(model, file)], getattr(model.config, "image_size", 0))[0]
    except InputError as error:
        raise error if str(file) in str(error) else InputError(f"{file}: {error}") from error
    values, order = logits.double().softmax(0).sort(descending=True, stable=True)
    named = model.classes if len(model.classes) == len(logits) else _numbered(len(logits))
    best = [
        {"class": named[row], "probability": round(value, 6)}
        for row, value in zip(order[:top].tolist(), values[:top].tolist())
    ]
    return {"file": str(file), **best[0], "top": best}


def _read(model: Encoder, file: Path) -> Any:
    if model.kind != "image":
        return read_cloud(file)[0]
    if not file.is_file():
        raise InputError(f"{file}: no such image; this network reads images")
    return Image.fromarray(read_photo(file))


def _numbered(count: int) -> Sequence[str]:
    return [f"class {number}" for number in range(count)]


def _said(one: dict[str, Any]) -> str:
    return f"{one['class']} {100 * one['probability']:.1f} %"


def _csv(found: list[dict[str, Any]], top: int) -> str:
    """The same as rows: file, then class and probability of each of the best."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    most = min(top, max(len(one["top"]) for one in found))
    rows.writerow(["file", *(f"{column}_{n}" for n in range(1, most + 1) for column in ("class", "probability"))])
    for one in found:
        rows.writerow([one["file"], *(value for each in one["top"] for value in each.values())])
    return text.getvalue()


__all__ = ["ClassifyOptions", "predict"]
