"""The index file of mined view pairs: plain text (``.tsv``) or parquet (``.parquet``, extra ``parquet``).

Text: comment lines that start with ``#`` (format, datasets, options), a line of column names, then a pair a line,
columns parted by tabs. Pairs are kept by name, so that a file outlives a change in the order of scenes or views.
"""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo3d.datasets.covisibility import EVIDENCE
from geo3d.errors import InputError, require_extra
from geo3d.writing import replacing, writing

#: Columns of an index file; ``dataset`` counts in the datasets of the header.
COLUMNS = ("dataset", "scene", "first", "second", "overlap", "angle_degrees", "score", "evidence")

_FORMAT = "geo3d view pairs, format 1"
_EVIDENCE_CODE = {name: code for code, name in enumerate(EVIDENCE)}


@dataclass(frozen=True)
class IndexedDataset:
    """A dataset that pairs were taken from: its layout (``SceneDataset.kind``) and its folder."""

    kind: str
    root: Path


@dataclass
class PairIndex:
    """View pairs by name. Names are held once; a million pairs take 29 MB.

    Args:
        datasets: where the scenes are.
        options: how the pairs were mined, for people to read.
        scenes: dataset number and name of each scene that has pairs.
        views: names of views, each once.
        scene: (P,) int32 row of ``scenes``.
        first, second: (P,) int32 rows of ``views``.
        overlap: (P,) float32 in [0, 1]; NaN where it was not measured.
        angle: (P,) float32 radians; NaN where it was not measured.
        score: (P,) float32; NaN where there is none.
        evidence: (P,) int8 position in ``covisibility.EVIDENCE``.
        source: the file that it came from, for messages.
        start: how that file counts and the number of pair 0 in it, such as ``("line", 12)``.
    """

    datasets: tuple[IndexedDataset, ...]
    options: dict[str, str]
    scenes: list[tuple[int, str]]
    views: list[str]
    scene: np.ndarray
    first: np.ndarray
    second: np.ndarray
    overlap: np.ndarray
    angle: np.ndarray
    score: np.ndarray
    evidence: np.ndarray
    source: str = "pairs"
    start: tuple[str, int] = ("row", 0)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.scene)

    def place(self, row: int) -> str:
        """File and line of a pair, for messages."""
        unit, start = self.start
        return f"{self.source}, {unit} {start + row}"

    def write(self, path: str | Path) -> None:
        """Write the file at once or not at all; the suffix chooses the format.

        Raises:
            InputError: an unknown suffix, or a name that a line of text cannot hold.
            MissingExtra: parquet without pyarrow.
        """
        path = Path(path)
        writer = index_writer(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            writer(self, temporary, path.parent)


class PairIndexBuilder:
    """Collects pairs scene by scene."""

    def __init__(self, datasets: Sequence[IndexedDataset], options: dict[str, str]) -> None:
        self._datasets, self._options = tuple(datasets), options
        self._scenes: list[tuple[int, str]] = []
        self._views: dict[str, int] = {}
        self._columns: list[tuple[np.ndarray, ...]] = []

    def add(
        self, dataset: int, scene: str, view_names: Sequence[str], columns: dict[str, np.ndarray], evidence: str
    ) -> None:
        """Add the pairs of one scene.

        Args:
            dataset: number of its dataset.
            scene: its name.
            view_names: names of its views.
            columns: ``first`` and ``second`` view indices (P,), and ``overlap``, ``angle`` and ``score`` (P,).
            evidence: where the scores come from.
        """
        used, ends = np.unique(np.concatenate([columns["first"], columns["second"]]), return_inverse=True)
        code = np.array([self._views.setdefault(view_names[v], len(self._views)) for v in used], dtype=np.int32)
        first, second = code[ends].reshape(2, -1)
        count = len(first)
        scores = (np.asarray(columns[name], dtype=np.float32) for name in ("overlap", "angle", "score"))
        scene_row = np.full(count, len(self._scenes), dtype=np.int32)
        self._columns.append(
            (scene_row, first, second, *scores, np.full(count, _EVIDENCE_CODE[evidence], dtype=np.int8))
        )
        self._scenes.append((dataset, scene))

    def build(self) -> PairIndex:
        """The index of all that was added.

        Raises:
            ValueError: nothing was added.
        """
        if not self._columns:
            raise ValueError("PairIndexBuilder: no pair was added")
        joined = (np.concatenate(column) for column in zip(*self._columns))
        return PairIndex(self._datasets, self._options, self._scenes, list(self._views), *joined)


def index_writer(path: Path) -> Callable[[PairIndex, Path, Path], None]:
    """What writes an index to a file of this suffix.

    Raises:
        InputError: an unknown suffix.
        MissingExtra: parquet without pyarrow.
    """
    writer = _by_suffix(path, {".tsv": _write_text, ".parquet": _write_parquet})
    if writer is _write_parquet:
        _arrow()
    return writer


def read_pair_index(path: str | Path) -> PairIndex:
    """Read an index file.

    Raises:
        InputError: the file is missing, empty, of another format, or a line is wrong; names file and line.
        MissingExtra: parquet without pyarrow.
    """
    path = Path(path)
    reader = _by_suffix(path, {".tsv": _read_text, ".parquet": _read_parquet})
    if not path.is_file():
        raise InputError(f"{path}: no such index of view pairs; `geo3d prepare pairs` makes one")
    return reader(path)


def _by_suffix(path: Path, choices: dict[str, Callable]) -> Callable:
    if path.suffix not in choices:
        raise InputError(f"{path}: an index of view pairs ends in {' or '.join(choices)}")
    return choices[path.suffix]


def _stored_root(root: Path, folder: Path) -> str:
    """A root below the index's folder is stored relative to it, so that both can move together."""
    root, folder = root.resolve(), folder.resolve()
    return Path(os.path.relpath(root, folder)).as_posix() if root.is_relative_to(folder) else str(root)


# --- text ---


def _write_text(index: PairIndex, path: Path, folder: Path) -> None:
    datasets = [(f"dataset {n}", f"{d.kind}\t{_stored_root(d.root, folder)}") for n, d in enumerate(index.datasets)]
    options = [(f"option {name}", value) for name, value in index.options.items()]
    for name in [name for _, name in index.scenes] + index.views:
        if "\t" in name or name.splitlines() != [name]:
            raise InputError(f"name {name!r} holds a tab or a line break, which a .tsv cannot hold: write a .parquet")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"name {name!r} is not UTF-8, which an index cannot hold: rename the file")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"# {_FORMAT}\n")
        file.writelines(f"# {name} = {value}\n" for name, value in datasets + options)
        file.write("\t".join(COLUMNS) + "\n")
        scenes = [f"{dataset}\t{name}" for dataset, name in index.scenes]
        for scene, first, second, overlap, angle, score, evidence in zip(
            index.scene.tolist(),
            index.first.tolist(),
            index.second.tolist(),
            index.overlap.tolist(),
            np.degrees(index.angle).tolist(),
            index.score.tolist(),
            index.evidence.tolist(),
        ):
            file.write(
                f"{scenes[scene]}\t{index.views[first]}\t{index.views[second]}\t{overlap:.4f}\t{angle:.2f}\t{score:.4f}\t"
                f"{EVIDENCE[evidence]}\n"
            )


def _read_text(path: Path) -> PairIndex:
    header: dict[str, str] = {}
    scenes: dict[tuple[str, str], int] = {}
    views: dict[str, int] = {}
    codes, scores = array("i"), array("f")
    number = start = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                row = line.rstrip("\n").split("\t")
                if start:
                    if len(row) != len(COLUMNS):
                        raise ValueError(f"{len(row)} columns, expected {len(COLUMNS)} parted by tabs")
                    codes.append(scenes.setdefault((row[0], row[1]), len(scenes)))
                    codes.append(views.setdefault(row[2], len(views)))
                    codes.append(views.setdefault(row[3], len(views)))
                    codes.append(_EVIDENCE_CODE.get(row[7], -1))
                    scores.extend(map(float, row[4:7]))
                elif line.startswith("#"):
                    key, _, value = line[1:].strip().partition(" = ")
                    header[key] = value
                else:
                    _check_header(f"{path}, line {number}", header, row)
                    start = number + 1
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number + 1}: not UTF-8 text; is this an index of view pairs?") from error
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}, line {number}: {error}") from None
    scene, first, second, evidence = np.array(codes, dtype=np.int32).reshape(-1, 4).T.copy()
    overlap, degrees, score = np.array(scores, dtype=np.float32).reshape(-1, 3).T.copy()
    return _checked(
        PairIndex(
            _header_datasets(path, header),
            {key.removeprefix("option "): value for key, value in header.items() if key.startswith("option ")},
            [(int(dataset) if re.fullmatch("[0-9]{1,9}", dataset) else -1, name) for dataset, name in scenes],
            list(views),
            *(scene, first, second, overlap, np.radians(degrees), score, evidence.astype(np.int8)),
            source=str(path),
            start=("line", start),
        )
    )


def _check_header(place: str, header: dict[str, str], columns: Sequence[str]) -> None:
    if _FORMAT not in header:
        raise InputError(f"{place}: not an index of view pairs; one says '{_FORMAT}' at its top")
    if tuple(columns) != COLUMNS:
        raise InputError(f"{place}: the columns are {', '.join(columns)}; expected {', '.join(COLUMNS)}")


def _header_datasets(path: Path, header: dict[str, str]) -> tuple[IndexedDataset, ...]:
    datasets = []
    while (value := header.get(f"dataset {len(datasets)}")) is not None:
        kind, _, root = value.partition("\t")
        datasets.append(IndexedDataset(kind, path.parent / root))
    return tuple(datasets)


def _checked(index: PairIndex) -> PairIndex:
    """The index itself, when every row makes sense."""
    if len(index) == 0:
        raise InputError(f"{index.source}: the index holds no pairs; mine it again with wider ranges")
    dataset = np.array([number for number, _ in index.scenes])[index.scene]
    count = len(index.datasets)
    for wrong, reason in (
        (
            (dataset < 0) | (dataset >= count),
            f"the dataset must be a number below {count}, as many as the header names",
        ),
        ((index.evidence < 0) | (index.evidence >= len(EVIDENCE)), f"evidence must be one of {', '.join(EVIDENCE)}"),
        ((index.overlap < 0) | (index.overlap > 1), "overlap must lie in [0, 1]"),
        ((index.angle < 0) | (index.angle > math.pi + 1e-6), "the angle must lie in [0, 180] degrees"),
        (index.first == index.second, "a view is paired with itself"),
    ):
        if wrong.any():
            raise InputError(f"{index.place(int(wrong.argmax()))}: {reason}")
    return index


# --- parquet ---


def _write_parquet(index: PairIndex, path: Path, folder: Path) -> None:
    arrow, parquet = _arrow()

    def coded(codes: np.ndarray, values: Sequence[str]):
        return arrow.DictionaryArray.from_arrays(arrow.array(codes), arrow.array(list(values), type=arrow.string()))

    columns = [
        arrow.array(np.array([number for number, _ in index.scenes], dtype=np.int32)[index.scene]),
        coded(index.scene, [name for _, name in index.scenes]),
        coded(index.first, index.views),
        coded(index.second, index.views),
        arrow.array(index.overlap),
        arrow.array(np.degrees(index.angle)),
        arrow.array(index.score),
        coded(index.evidence, EVIDENCE),
    ]
    about = {
        "format": _FORMAT,
        "datasets": [[d.kind, _stored_root(d.root, folder)] for d in index.datasets],
        "options": index.options,
    }
    table = arrow.table(dict(zip(COLUMNS, columns))).replace_schema_metadata({"geo3d": json.dumps(about)})
    parquet.write_table(table, path)


def _read_parquet(path: Path) -> PairIndex:
    arrow, parquet = _arrow()
    try:
        table = parquet.read_table(path)
        about = json.loads((table.schema.metadata or {}).get(b"geo3d", b"{}"))
        header = {about.get("format", ""): ""}
        header.update({f"dataset {n}": "\t".join(pair) for n, pair in enumerate(about.get("datasets", ()))})
        _check_header(str(path), header, table.column_names)
        texts = {name: _codes(arrow, table[name]) for name in ("scene", "first", "second", "evidence")}
        numbers = {name: table[name].to_numpy().astype(np.float32) for name in ("overlap", "angle_degrees", "score")}
        dataset = table["dataset"].to_numpy().astype(np.int64)
        options = dict(about["options"])
    except InputError:
        raise
    except (arrow.ArrowException, OSError, TypeError, ValueError, LookupError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable index of view pairs: {why}") from error
    scene_codes, scene_names = texts["scene"]
    keys, scene = np.unique(dataset * len(scene_names) + scene_codes, return_inverse=True)
    first_codes, first_names = texts["first"]
    second_codes, second_names = texts["second"]
    views = {name: code for code, name in enumerate(dict.fromkeys(first_names + second_names))}
    evidence_codes, evidence_names = texts["evidence"]
    return _checked(
        PairIndex(
            _header_datasets(path, header),
            options,
            [(int(key // len(scene_names)), scene_names[key % len(scene_names)]) for key in keys],
            list(views),
            scene.astype(np.int32),
            _recoded(first_codes, first_names, views),
            _recoded(second_codes, second_names, views),
            numbers["overlap"],
            np.radians(numbers["angle_degrees"]),
            numbers["score"],
            _recoded(evidence_codes, evidence_names, _EVIDENCE_CODE).astype(np.int8),
            source=str(path),
        )
    )


def _arrow():
    return tuple(require_extra(name, "parquet", "an index in parquet") for name in ("pyarrow", "pyarrow.parquet"))


def _codes(arrow, column) -> tuple[np.ndarray, list[str]]:
    """Codes (P,) of a column of text and the texts they stand for."""
    coded = arrow.compute.dictionary_encode(column.cast(arrow.string())).combine_chunks()
    if coded.null_count:
        raise TypeError("a name is missing")
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()


def _recoded(codes: np.ndarray, names: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Codes into ``names`` as codes into ``vocabulary``; -1 where it lacks the name."""
    return np.array([vocabulary.get(name, -1) for name in names], dtype=np.int32)[codes]
