"""Targets of a frozen teacher on disk, an object a file, so that each object is shown to it once."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from geo3d.errors import InputError
from geo3d.models.teachers.teacher import TeacherOutput
from geo3d.progress import Log
from geo3d.writing import replacing, write_tensors, write_text, writing

#: Of what is written; files of another one are made anew.
_FORMAT = 1
_KEY_DIGITS = 32


class StoredTargets(NamedTuple):
    """What a teacher said of the views of one object.

    Args:
        features: (V, C, h, w) float16.
        saliency: (V, h, w) float32.
    """

    features: Tensor
    saliency: Tensor


def content_key(points: Tensor) -> str:
    """Key of an object: a hash of its points (N, 3) as float32, in their order; 32 hexadecimal digits."""
    xyz = points.detach().cpu().float().contiguous()
    digest = hashlib.blake2b(f"{tuple(xyz.shape)}".encode(), digest_size=_KEY_DIGITS // 2)
    digest.update(xyz.numpy().data if xyz.numel() else b"")
    return digest.hexdigest()


class TargetStore:
    """Targets of one teacher for one kind of views, by the content of the objects.

    An object is a file of its own, 40 kB (HOG) to 600 kB (CLIP) for three views, in 256 folders: it is written at once
    or not at all, by any number of processes without a lock, and damage costs one object. What is damaged is told in a
    line and counts as absent, so that it is made again. A store holds no open file and travels to loader workers.

    Args:
        folder: where stores lie; each teacher and kind of views has a folder of its own in it, made when first written.
        teacher: ``Teacher.identity``.
        views: all else that the targets depend on, such as ``{"views": "depth", "size": 224}``.
        log: takes the lines about damaged files.
    """

    def __init__(
        self, folder: Path | str, teacher: str, views: Mapping[str, str | int | float], log: Log = print
    ) -> None:
        about = {"format": _FORMAT, "teacher": teacher, "views": dict(sorted(views.items()))}
        self._about = json.dumps(about, indent=2)
        self.folder = Path(folder) / hashlib.blake2b(self._about.encode(), digest_size=8).hexdigest()
        self.log = log

    def path(self, key: str) -> Path:
        """The file of an object.

        Raises:
            InputError: no key, as :func:`content_key` makes it.
        """
        if len(key) != _KEY_DIGITS or not set(key) <= set("0123456789abcdef"):
            raise InputError(f"target store: a key is made by content_key(points), got {key!r}")
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def get(self, key: str) -> StoredTargets | None:
        """Targets of an object; None where there are none, or where their file is damaged, which is logged."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                found = StoredTargets(file.get_tensor("features"), file.get_tensor("saliency"))
                stated = (file.metadata() or {}).get("checksum")
        except Exception as error:  # of damaged headers; of a file that is taken away meanwhile
            return self._damaged(path, " ".join(str(error).split()))
        if stated != _checksum(key, found):
            return self._damaged(path, "its checksum does not fit")
        return found

    def put(self, key: str, features: Tensor, saliency: Tensor) -> None:
        """Write the targets of an object, in place of what there may be.

        Args:
            key: of :func:`content_key`.
            features: (V, C, h, w), kept in half precision.
            saliency: (V, h, w).

        Raises:
            InputError: shapes that do not fit each other, features beyond half precision (65504), or nothing can be
                written.
        """
        if features.ndim != 4 or saliency.shape != (features.shape[0], *features.shape[2:]):
            raise InputError(
                f"target store: features must be (V, C, h, w) and saliency (V, h, w), got {tuple(features.shape)} and "
                f"{tuple(saliency.shape)}"
            )
        kept = StoredTargets(features.detach().cpu().half().contiguous(), saliency.detach().cpu().float().contiguous())
        if not (kept.features.isfinite().all() and kept.saliency.isfinite().all()):
            raise InputError("target store: features are not finite in half precision (up to 65504); scale them down")
        path = self.path(key)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.is_file():
            write_text(about, self._about + "\n")
        with replacing(path) as target:
            write_tensors(target, kept._asdict(), {"checksum": _checksum(key, kept)})

    def complete(self, keys: Sequence[str], make: Callable[[list[int]], TeacherOutput]) -> TeacherOutput:
        """Targets of a batch: those that are stored, and those that are made and stored now.

        Args:
            keys: of the B objects.
            make: given the numbers of the M objects that are lacking, what the teacher says of their views:
                (V * M, C, h, w) and (V * M, h, w), all objects of view 1 first, as :func:`geo3d.nn.depth_views` orders
                them.

        Returns:
            Features (V * B, C, h, w) float32 rounded to half precision, and saliency (V * B, h, w), in the same order.

        Raises:
            InputError: as :meth:`put`.
        """
        found = {number: self.get(key) for number, key in enumerate(keys)}
        lacking = [number for number, targets in found.items() if targets is None]
        if lacking:
            made = make(lacking)
            features, saliency = (t.cpu().unflatten(0, (-1, len(lacking))) for t in made)
            for place, number in enumerate(lacking):
                targets = StoredTargets(features[:, place].half(), saliency[:, place].float())
                self.put(keys[number], *targets)
                found[number] = targets
        features, saliency = zip(*(found[number] for number in range(len(keys))))
        return TeacherOutput(
            torch.stack(features, 1).flatten(0, 1).float(), torch.stack(saliency, 1).flatten(0, 1).float()
        )

    def _damaged(self, path: Path, reason: str) -> None:
        self.log(f"{path}: damaged targets of a teacher ({reason}); they are made again")


def _checksum(key: str, targets: StoredTargets) -> str:
    """Of the key and the numbers, so that neither a flipped bit nor an exchanged file passes."""
    total = zlib.crc32(key.encode())
    for tensor in targets:
        total = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.contiguous().numpy().data if tensor.numel() else b"", total)
    return f"{total:08x}"
