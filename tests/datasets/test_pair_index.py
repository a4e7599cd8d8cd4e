"""The index file of view pairs: round trips, and what a damaged one says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from geo3d.datasets.pair_index import (
    COLUMNS,
    IndexedDataset,
    PairIndex,
    PairIndexBuilder,
    read_pair_index,
)
from geo3d.errors import InputError, MissingExtra
from geo3d.writing import replacing

HEADER = "# geo3d view pairs, format 1\n# dataset 0 = scannet\tscans\n"
NAMES = "\t".join(COLUMNS) + "\n"
ROW = "0\troom\t10\t20\t0.5\t12\t0.4\tdepth\n"


def example(folder: Path) -> PairIndex:
    """Two datasets that share a scene's name, names with spaces and accents, one scene of listed pairs."""
    inside = IndexedDataset("scannet", folder / "data" / "scans")
    builder = PairIndexBuilder([inside, IndexedDataset("mvimgnet", Path("/else where"))], {"min_overlap": "0.5"})
    unknown = np.full(2, np.nan)
    builder.add(
        0,
        "a room",
        ["10", "20", "#30"],
        {
            "first": np.array([2, 0, 1]),
            "second": np.array([0, 1, 2]),
            "overlap": np.array([0.5, 0.75, 1.0]),
            "angle": np.radians([10.0, 20.25, 59.99]),
            "score": np.array([0.4, 0.3, 0.0]),
        },
        "depth",
    )
    listed = {"first": np.array([0, 1]), "second": np.array([1, 2])}
    listed |= {"overlap": unknown, "angle": unknown, "score": unknown}
    builder.add(1, "a room", ["éléphant 1.jpg", "10", "x/y.png"], listed, "listed")
    return builder.build()


def rows(index: PairIndex) -> list[tuple]:
    return [
        (*index.scenes[scene], index.views[first], index.views[second], int(evidence))
        for scene, first, second, evidence in zip(index.scene, index.first, index.second, index.evidence)
    ]


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    index = example(tmp_path)
    path = tmp_path / "new folder" / f"pairs{suffix}"
    index.write(path)
    again = read_pair_index(path)
    assert len(again) == len(index) == 5
    assert rows(again) == rows(index)
    assert again.options == {"min_overlap": "0.5"}
    assert [d.kind for d in again.datasets] == ["scannet", "mvimgnet"]
    assert [d.root.resolve() for d in again.datasets] == [(tmp_path / "data" / "scans").resolve(), Path("/else where")]
    # Text holds four decimals of overlap and score, two of degrees.
    np.testing.assert_allclose(again.overlap, index.overlap, atol=6e-5)
    np.testing.assert_allclose(again.score, index.score, atol=6e-5)
    np.testing.assert_allclose(np.degrees(again.angle), np.degrees(index.angle), atol=6e-3)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_text_is_what_a_person_expects(tmp_path: Path) -> None:
    example(tmp_path).write(tmp_path / "pairs.tsv")
    assert (tmp_path / "pairs.tsv").read_text(encoding="utf-8").splitlines() == [
        "# geo3d view pairs, format 1",
        "# dataset 0 = scannet\tdata/scans",  # below the index's folder: relative, so that both can move
        "# dataset 1 = mvimgnet\t/else where",
        "# option min_overlap = 0.5",
        "dataset\tscene\tfirst\tsecond\toverlap\tangle_degrees\tscore\tevidence",
        "0\ta room\t#30\t10\t0.5000\t10.00\t0.4000\tdepth",
        "0\ta room\t10\t20\t0.7500\t20.25\t0.3000\tdepth",
        "0\ta room\t20\t#30\t1.0000\t59.99\t0.0000\tdepth",
        "1\ta room\téléphant 1.jpg\t10\tnan\tnan\tnan\tlisted",
        "1\ta room\t10\tx/y.png\tnan\tnan\tnan\tlisted",
    ]


def test_an_index_moves_with_its_data(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    example(tmp_path / "old").write(tmp_path / "old" / "pairs.tsv")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_pair_index(tmp_path / "new" / "pairs.tsv")
    assert moved.datasets[0].root == tmp_path / "new" / "data" / "scans"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"pairs\.tsv: the index holds no pairs"),
        ("hello\n", r"pairs\.tsv, line 1: not an index of view pairs"),
        (HEADER, r"pairs\.tsv: the index holds no pairs"),
        (HEADER + NAMES, r"pairs\.tsv: the index holds no pairs"),
        (
            HEADER + "dataset\tscene\n" + ROW,
            r"pairs\.tsv, line 3: the columns are dataset, scene; expected dataset, scene, first",
        ),
        (HEADER + NAMES + ROW + "0\troom\t10\n", r"pairs\.tsv, line 5: 3 columns, expected 8"),
        (HEADER + NAMES + ROW + "\n", r"pairs\.tsv, line 5: 1 columns, expected 8"),
        (HEADER + NAMES + ROW.replace("0.5", "half"), r"line 4: could not convert string to float: 'half'"),
        (HEADER + NAMES + ROW + ROW.replace("0\troom", "1\troom"), r"line 5: the dataset must be a number below 1"),
        (HEADER + NAMES + ROW.replace("0\troom", "-\troom"), r"line 4: the dataset must be a number below 1"),
        (HEADER + NAMES + ROW + ROW.replace("depth", "faith"), r"line 5: evidence must be one of listed, depth"),
        (HEADER + NAMES + ROW.replace("0.5", "1.5"), r"line 4: overlap must lie in \[0, 1\]"),
        (HEADER + NAMES + ROW.replace("\t12\t", "\t181\t"), r"line 4: the angle must lie in \[0, 180\]"),
        (HEADER + NAMES + ROW.replace("20", "10"), r"line 4: a view is paired with itself"),
    ],
)
def test_damaged_text_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_pair_index(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_undamaged_text_reads(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text(HEADER + NAMES + ROW)
    index = read_pair_index(tmp_path / "pairs.tsv")
    assert index.place(0) == f"{tmp_path / 'pairs.tsv'}, line 4"
    assert index.angle[0] == pytest.approx(np.radians(12))


def test_binary_file_under_the_name_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes(HEADER.encode() + b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_pair_index(tmp_path / "pairs.tsv")


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such index"):
        read_pair_index(tmp_path / "pairs.tsv")
    with pytest.raises(InputError, match=r"ends in \.tsv or \.parquet"):
        read_pair_index(tmp_path / "pairs.csv")
    with pytest.raises(InputError, match=r"ends in \.tsv or \.parquet"):
        example(tmp_path).write(tmp_path / "pairs.csv")


def test_a_name_that_text_cannot_hold(tmp_path: Path) -> None:
    builder = PairIndexBuilder([IndexedDataset("scannet", tmp_path)], {})
    columns = {"first": np.array([0]), "second": np.array([1])}
    columns |= {name: np.array([0.5]) for name in ("overlap", "angle", "score")}
    builder.add(0, "room", ["a\tb", "c"], columns, "depth")
    with pytest.raises(InputError, match=r"'a\\tb' holds a tab"):
        builder.build().write(tmp_path / "pairs.tsv")
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("pyarrow")
    builder.build().write(tmp_path / "pairs.parquet")
    assert rows(read_pair_index(tmp_path / "pairs.parquet"))[0][2] == "a\tb"


def test_damaged_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="not a readable index"):
        read_pair_index(path)
    parquet.write_table(arrow.table({"a": [1]}), path)
    with pytest.raises(InputError, match="not an index of view pairs"):
        read_pair_index(path)
    example(tmp_path).write(path)
    table = parquet.read_table(path)
    for column, value, message in (
        ("overlap", [0.5, 1.5, 0.5, 0.5, 0.5], r"row 1: overlap must lie"),
        ("dataset", [0, 0, 7, 0, 0], r"row 2: the dataset must be"),
        ("evidence", ["depth"] * 4 + ["faith"], r"row 4: evidence must be"),
        ("first", ["10", None, "20", "10", "10"], r"not a readable index of view pairs: a name is missing"),
        ("scene", [["a"]] * 5, r"not a readable index of view pairs"),
    ):
        damaged = table.set_column(table.column_names.index(column), column, arrow.array(value))
        parquet.write_table(damaged, path)
        with pytest.raises(InputError, match=message):
            read_pair_index(path)
    parquet.write_table(table.slice(0, 0), path)
    with pytest.raises(InputError, match="holds no pairs"):
        read_pair_index(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"geo3d\[parquet\]"):
        example(tmp_path).write(tmp_path / "pairs.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half a new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_are_held_once() -> None:
    builder = PairIndexBuilder([IndexedDataset("scannet", Path())], {})
    names = [str(i) for i in range(1000)]
    rng = np.random.default_rng(0)
    for scene in range(20):
        first = rng.integers(0, 1000, 5000)
        columns = {"first": first, "second": (first + 1) % 1000}
        columns |= {name: np.full(5000, 0.5) for name in ("overlap", "angle", "score")}
        builder.add(0, f"scene {scene}", names, columns, "depth")
    index = builder.build()
    assert len(index) == 100_000
    assert len(index.views) <= 1000
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert sum(a.nbytes for a in arrays) <= 29 * len(index)
