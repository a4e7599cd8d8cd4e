"""The weights that come with geo3d, and the tables of docs/weights.md.

python tools/weights.py ship sparse_resnet_tiny runs/sparse_resnet_tiny   # a run's encoder: geo3d/weights
python tools/weights.py docs                                              # the tables of docs/weights.md
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

import geo3d
from geo3d.checkpoints import shipped_info, shipped_names
from geo3d.errors import InputError
from geo3d.models import ReleasedFile, create_encoder, encoder_of, family_of

_ROOT = Path(__file__).resolve().parents[1]
_DOCS = _ROOT / "docs" / "weights.md"
_LICENCE = "Apache-2.0"
_BYTES = 4  # of a float32, as which authors release weights


@dataclass(frozen=True)
class Trained:
    """What a shipped file tells of its weights.

    Args:
        data: that they were trained on.
        command: that trains them, from an empty folder.
        time: that it takes.
        date: of the training.
        figures: what probes say of them beside random weights.
        licence: as an SPDX identifier.
    """

    data: str
    command: str
    time: str
    date: str
    figures: str
    licence: str = _LICENCE


SHIPPED = {
    "i2p_mae_tiny": Trained(
        data="5,000 synthetic objects of seed 0, with EfficientNet-Lite0 (of ImageNet) as teacher",
        command="geo3d pretrain i2p_mae --held-out 0 --train.steps 1600 --method.teacher efficientnet_lite0",
        time="8 minutes on two cores",
        date="2026-11-27",
        figures="linear SVM on 380 objects of 19 classes, of other origin: 91.5 % as they are stored, 82.6 % where "
        "each is turned; random weights 66.7 % and 43.3 %, histograms of local shape 92.2 % and 92.2 %",
    ),
    "sparse_resnet_tiny": Trained(
        data="86 of 96 synthetic rooms of seed 0, at 5 cm, colours and normals",
        command="geo3d pretrain spark3d --rooms 96 --train.steps 3200",
        time="26 minutes of one core, rooms included",
        date="2026-11-28",
        figures="linear read-out of classes in 8 other synthetic rooms: mean IoU 33.1 %, random weights 27.5 and "
        "27.7 %, what it reads 13.0 %; in a scan of ScanNet, one half of the floor read off the other: "
        "24.1 %, random weights 16.7 and 15.2 %, what it reads 16.7 %",
    ),
    "resnet_tiny": Trained(
        data="1,720 views of 86 of 96 synthetic rooms of seed 0",
        command="geo3d pretrain spark --rooms 96 --train.steps 1000 --method.image-size 128 128 --method.scale 0.15 1",
        time="22 minutes of one core, rooms included",
        date="2026-11-28",
        figures="linear read-out of classes of image patches in 8 other synthetic rooms: mean IoU 20.9 %, random "
        "weights 15.0 and 12.5 %, pixels 14.7 %; of the points of a real stereo pair 46.7 % are matched "
        "within 4 pixels, random weights 34.7 and 32.1 %, patches of pixels 42.4 %",
    ),
}


def ship(name: str, run: Path) -> Path:
    """Write the encoder of a run as the weights of a model that come with geo3d.

    Raises:
        InputError: nothing is said of it in :data:`SHIPPED`, or the run holds another model.
    """
    if name not in SHIPPED:
        raise InputError(f"{name}: say in {Path(__file__).name} what its weights were trained on and how")
    model = encoder_of(geo3d.create_model(name, checkpoint=run))
    model.name = name
    path = _ROOT / "geo3d" / "weights" / f"{name}.safetensors"
    geo3d.save_model(model, path, half=True, about=asdict(SHIPPED[name]))
    return path


def shipped_table() -> str:
    """The weights that come with geo3d, as a table of Markdown."""
    rows = []
    for name in shipped_names():
        info, weights = geo3d.model_info(name), shipped_info(name)
        numbers = sum(p.numel() for p in create_encoder(name).parameters())
        about = weights.about
        sizes = f"{numbers / 1e6:.1f} M", f"{weights.size / 1e6:.1f} MB"
        rows.append((f"`{name}`", info.kind, *sizes, *(about[key] for key in ("data", "time", "date", "licence"))))
    head = ("model", "reads", "weights of the encoder", "file", "trained on", "time", "date", "licence")
    commands = "\n".join(shipped_info(name).about["command"] for name in shipped_names())
    figures = "\n".join(f"- `{name}`: {shipped_info(name).about['figures']}" for name in shipped_names())
    return f"{_table(head, rows)}\n\n{figures}\n\n```bash no-run: trains for 8 to 26 minutes each\n{commands}\n```"


@cache
def released_table() -> str:
    """The files that authors released, as a table of Markdown."""
    rows: dict[str, tuple[str, ...]] = {}
    for name in [name for name in geo3d.list_models() if family_of(name).name == name]:
        info = geo3d.model_info(name)
        for file in info.files:
            licence = (info.licence or "not known") + (", non-commercial" if info.non_commercial else "")
            models = ", ".join(f"`{model}`" for model in file.models)
            row = (f"`{file.file}`", info.family, models, file.task, _size(file), licence, _where(file, info.page))
            rows.setdefault(file.file, row)
    order = sorted(rows.values(), key=lambda row: (row[1], row[0]))
    return _table(("file", "family", "model", "task", "size", "licence", "where"), order)


def _size(file: ReleasedFile) -> str:
    """Of the whole file where its page tells it, else of the weights that geo3d reads of it."""
    if file.megabytes is not None:
        return f"{file.megabytes:g} MB"
    whole = {"encoder": file.models[0]} if file.models[-1] == "spark" else {}
    with torch.device("meta"):  # no weights are drawn
        model = family_of(file.models[-1]).build(file.models[-1], whole)
    return f"{sum(p.numel() for p in model.parameters()) * _BYTES / 1e6:.0f} MB of weights"


def _where(file: ReleasedFile, page: str) -> str:
    listed = f"[README]({page})" if page else "not known"
    return f"{listed}, `{file.address}`" if file.address else listed


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def docs() -> str:
    """docs/weights.md with its tables as the code has them."""
    text = _DOCS.read_text()
    for name, table in (("shipped", shipped_table()), ("released", released_table())):
        begin, end = f"<!-- {name}: made by tools/weights.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def main(args: list[str]) -> None:
    """Read the command line."""
    if args[:1] == ["ship"] and len(args) == 3:
        path = ship(args[1], Path(args[2]))
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    elif args == ["docs"]:
        _DOCS.write_text(docs())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
