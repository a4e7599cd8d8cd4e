"""Checkpoints on disk: written so that a crash at any moment leaves the one before intact.

checkpoints/
  step_00001200/
    model.safetensors   the method's weights under their plain names
    ema.safetensors     their moving average, where one is kept
    state.pt            optimizer, counters, config; loads with weights_only=True
    manifest.json       step, loss, measured figure, versions; size and SHA-256 of each file
  best                  name of the folder of best measured figure, or else of lowest smoothed training loss
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import geo3d
from geo3d.checkpoints.loading import untied
from geo3d.config import typed_value
from geo3d.errors import InputError
from geo3d.writing import UNFINISHED, to_disk, write_tensors, write_text, write_torch, writing

_NAME = re.compile(r"step_(\d{8,})")
#: Name of the figure by which checkpoints are compared where nothing is measured.
LOSS = "loss"


@dataclass(frozen=True)
class Figure:
    """A figure by which checkpoints are compared.

    Args:
        name: of the figure.
        value: what it is.
        higher_is_better: whether it is to rise.
    """

    name: str
    value: float
    higher_is_better: bool = False

    def at_least_as_good_as(self, other: Figure | None) -> bool:
        """Whether it is; a finite one is better than none, and what was measured than the loss."""
        if not math.isfinite(self.value):
            return False
        if other is None or not math.isfinite(other.value):
            return True
        if other.name != self.name:
            return self.name != LOSS
        return self.value >= other.value if self.higher_is_better else self.value <= other.value


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep_last: newest ones that are kept.
        keep_best: whether the best one is kept as well.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_best: bool = True) -> None:
        self.folder, self.keep_last, self.keep_best = folder, keep_last, keep_best

    def all(self) -> list[Path]:
        """Folders of all checkpoints, oldest first; none of them is checked."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def best(self) -> Path | None:
        """Folder of the best checkpoint, if any is marked."""
        marker = self.folder / "best"
        name = marker.read_text(errors="replace").strip() if marker.is_file() else ""
        path = self.folder / name
        return path if _NAME.fullmatch(name) and path.is_dir() else None

    def save(
        self,
        step: int,
        loss: float,
        state: dict[str, Any],
        model: dict[str, Tensor],
        ema: dict[str, Tensor] | None = None,
        metadata: dict[str, str] | None = None,
        figure: Figure | None = None,
    ) -> Path:
        """Write a checkpoint, mark it if it is the best, and delete those that are no longer kept.

        Args:
            step: optimizer steps done.
            loss: smoothed training loss.
            state: tensors and plain values.
            model: weights, on the CPU.
            ema: averaged weights, on the CPU.
            metadata: written into the heads of the safetensors files.
            figure: by which the best is told, the smoothed loss when not given; one that is not a number is worse than
                any that is.

        Returns:
            Its folder.

        Raises:
            InputError: it cannot be written; those before are as they were.
        """
        figure = figure or Figure(LOSS, loss)
        final = self.folder / f"step_{step:08d}"
        unfinished = self.folder / (UNFINISHED + final.name)
        shutil.rmtree(unfinished, ignore_errors=True)
        manifest = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "figure": asdict(figure) if math.isfinite(figure.value) else None,
            "geo3d": geo3d.__version__,
            "torch": torch.__version__,
        }
        try:
            with writing(final):
                unfinished.mkdir(parents=True)
                write_tensors(unfinished / "model.safetensors", untied(model), metadata)
                if ema is not None:
                    write_tensors(unfinished / "ema.safetensors", untied(ema), metadata)
                write_torch(unfinished / "state.pt", state)
                manifest["files"] = {path.name: _fingerprint(path) for path in sorted(unfinished.iterdir())}
                (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
                for path in [*unfinished.iterdir(), unfinished]:
                    to_disk(path)
                self._remove(final)  # a damaged one of the same step, from before a restart
                unfinished.rename(final)
        except InputError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        with writing(self.folder):
            to_disk(self.folder)
            self._mark_best(final, figure)
            self._prune()
        return final

    def newest_valid(self, report: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose files are whole, or None where there is no checkpoint.

        Newer ones that are damaged are renamed to ``*.damaged``, each with a line to ``report``.

        Raises:
            InputError: there are checkpoints and all of them are damaged.
        """
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self.all()):
            reason = damage(path)
            if reason is None:
                break
            damaged.append((path, reason))
        else:
            if damaged:
                path, reason = damaged[0]
                raise InputError(
                    f"{self.folder}: none of {len(damaged)} checkpoints is whole (newest: {path.name}: {reason}); "
                    "move the folder away to start anew"
                )
            return None
        for bad, reason in damaged:
            report(f"checkpoint {bad.name} is damaged ({reason}); using {path.name}")
            with writing(bad):
                bad.rename(_free(bad.with_name(bad.name + ".damaged")))
        return path

    def clean(self) -> None:
        """Delete what an interrupted save or deletion left."""
        if self.folder.is_dir():
            for path in self.folder.glob(UNFINISHED + "*"):
                with writing(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def mark_again(self, path: Path) -> None:
        """Mark a checkpoint if it is the best: a crash may have come between it and its mark."""
        figure = figure_of(path)
        if figure is not None:
            self._mark_best(path, figure)

    def _mark_best(self, path: Path, figure: Figure) -> None:
        best = self.best()
        if best == path and not damage(best, sizes_only=True):
            return  # as where a run goes on, which should not need room on the disk for that
        if best is None or damage(best, sizes_only=True) or figure.at_least_as_good_as(figure_of(best)):
            write_text(self.folder / "best", path.name + "\n")

    def _prune(self) -> None:
        keep = set(self.all()[-self.keep_last :]) | ({self.best()} if self.keep_best else set())
        for path in self.all():
            if path not in keep:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Delete a folder such that no half of it is ever taken for a checkpoint."""
        if path.exists():
            rest = path.with_name(f"{UNFINISHED}removed-{path.name}")
            shutil.rmtree(rest, ignore_errors=True)
            path.rename(rest)
            shutil.rmtree(rest)


def _free(path: Path) -> Path:
    """The name, or with a number behind it the first one that is not taken."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(found for found in (path, *itertools.islice(numbered, 1000)) if not found.exists())


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor] | None]:
    """State, weights and averaged weights (or None) of a checkpoint folder, on the CPU.

    Raises:
        InputError: a file of it cannot be read.
    """
    ema = path / "ema.safetensors"
    with taking_up(path):
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"state.pt holds a {type(state).__name__}")
        return state, load_file(path / "model.safetensors"), load_file(ema) if ema.is_file() else None


@contextmanager
def taking_up(path: Path) -> Iterator[None]:
    """Context in which a checkpoint's content is read and put to use, whatever another program has made of it.

    Raises:
        InputError: it is not what geo3d wrote.
    """
    try:
        yield
    except InputError as error:
        if str(path.parent.parent) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # of torch, of pickles and of missing entries: whatever they raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{path}: cannot be taken up ({reason}); move it away to use the one before it") from error


def loss_of(path: Path) -> float:
    """Smoothed training loss of a checkpoint folder; nan where no step had been good, or none is told."""
    loss = _manifest(path).get("loss")
    return float(loss) if isinstance(loss, int | float) else float("nan")


def figure_of(path: Path) -> Figure | None:
    """The figure by which a checkpoint folder is compared; None where it had none, or none that is finite."""
    try:
        return typed_value(Figure, _manifest(path).get("figure"), str(path))
    except InputError:
        return None


def damage(path: Path, sizes_only: bool = False) -> str | None:
    """What is wrong with a checkpoint folder according to its manifest, or None when it is whole."""
    try:
        files = _manifest(path)["files"]
        for name, expected in dict(files).items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            if not sizes_only and _fingerprint(path / name) != expected:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "manifest.json is not readable"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read: {error.strerror}"
    return None if "model.safetensors" in files and "state.pt" in files else "manifest.json lists too few files"


def _manifest(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text())
    if not isinstance(manifest, dict):
        raise ValueError(f"{path / 'manifest.json'}: holds a {type(manifest).__name__}")
    return manifest


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
