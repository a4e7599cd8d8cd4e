"""Damage anywhere in the small files of a posed scene is one line that names the file: some thousand damaged copies.

Each of the files is damaged in many ways, by a generator of fixed seeds: bytes changed, cut, inserted and left out, and
values of JSON replaced by others of every type.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_builders import (
    BUILDERS as EVERY_BUILDER,
)
from dataset_builders import (
    COLOR,
    build_capture,
    build_frames,
    build_instance,
    intrinsic_matrix,
    orbit,
    picture,
    save_matrix,
    write_colmap,
)

from geo3d.datasets import Quarantine, Scene, open_dataset
from geo3d.errors import InputError

ROUNDS = 120
TOKENS = [
    b"null", b"-1", b"1e999", b"NaN", "²".encode(), b"\xff", b"\0", b"{", b"]", b'"x"', b"9" * 40, b"[[1]]", b"\r",
    b"\\", b"..", b"/", b"nan(ind)", b"1.#QNAN", b"\xef\xbb\xbf", b"\\ud800", b"-1e308", b"#", b"\n\n", b" ",
]  # fmt: skip
VALUES = [
    None, True, 0, -1, 1e300, -1e308, 1e-320, float("nan"), float("inf"), 10**400, "", ".", "..", "/", "/etc/passwd",
    "²", "a\0b", "x" * 5000, "\ud800", "images", "images\\000.jpg", [], {}, [1], {"a": 1}, [[1, 2, 3, 4]] * 4,
    [[None] * 4] * 4, [["a"] * 4] * 4, "1" * 5000,
]  # fmt: skip
DAMAGED = (".json", ".bin", ".txt", ".h5", ".npz", ".npy", ".off", ".ply", ".xyz")
KEYS = [
    "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k3", "p1", "camera_angle_x", "camera_model", "is_fisheye", "frames",
    "file_path", "transform_matrix", "mask_path", "depth_file_path", "depth_path", "integer_depth_scale",
    "depth_unit_scale_factor",
]  # fmt: skip


def build_text_model(folder: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    build_instance(folder)
    model = folder / "sparse" / "0"
    pycolmap.Reconstruction(str(model)).write_text(str(model))
    for file in model.glob("*.bin"):
        file.unlink()


def build_two_models(folder: Path) -> None:
    build_instance(folder)
    write_colmap(folder / "sparse" / "1", ["001.jpg", "002.jpg"], orbit(2))


def build_flat(folder: Path) -> None:
    folder.mkdir()
    for index, pose in enumerate(orbit()):
        picture(seed=index).save(folder / f"frame-{index:06d}.color.png")
        save_matrix(folder / f"frame-{index:06d}.pose.txt", pose)
    matrix = " ".join(map(str, intrinsic_matrix(COLOR).reshape(-1)))
    (folder / "_info.txt").write_text(f"m_calibrationColorIntrinsic = {matrix}\n")


def build_lists(folder: Path) -> None:
    for place, name, text in (("a", "listing.txt", "x\ny\n"), ("b", "pairs.txt", "x_1.jpg x_2.jpg\ny_1.jpg x_1.jpg\n")):
        (folder / place).mkdir(parents=True)
        (folder / place / name).write_text(text)
        for stem in ("x_1", "x_2", "y_1", "y_2"):
            picture().save(folder / place / f"{stem}.jpg")


OBJECTS = ("shapenet55", "modelnet_hdf5", "modelnet_resampled", "scanobjectnn", "object_arrays", "object_folders")
# Kinds whose scenes have no views.
UNSEEN = (*OBJECTS, "radiance_grids")
BUILDERS: dict[str, Callable[[Path], None]] = {kind: EVERY_BUILDER[kind] for kind in UNSEEN} | {
    "transforms.json": lambda folder: build_capture(folder, absent=0),
    "binary COLMAP": build_two_models,
    "text COLMAP": build_text_model,
    "frames": build_frames,
    "flat frames": build_flat,
    "lists of pairs": build_lists,
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        start = int(rng.integers(len(changed) + 1))
        stop = start + int(rng.choice([1, 4, 8, 40]))
        way = rng.integers(5)
        if way == 0:
            changed[start:stop] = rng.bytes(stop - start)
        elif way == 1:
            del changed[start:]
        elif way == 2:
            changed[start:start] = TOKENS[rng.integers(len(TOKENS))]
        elif way == 3:
            changed[start:stop] = b"\xff" * (stop - start)
        else:
            del changed[start:stop]
    return bytes(changed)


def other_json(data: bytes, rng: np.random.Generator) -> bytes:
    content = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        value, key = VALUES[rng.integers(len(VALUES))], KEYS[rng.integers(len(KEYS))]
        frames = content.get("frames")
        if isinstance(frames, list) and frames and rng.random() < 0.6:
            target = frames[rng.integers(len(frames))]
            if not isinstance(target, dict) or rng.random() < 0.1:
                frames[0] = value
                continue
        else:
            target = content
        matrix = target.get("transform_matrix")
        if isinstance(matrix, list) and len(matrix) == 4 and isinstance(matrix[0], list) and rng.random() < 0.3:
            matrix[0] = [*matrix[0][:-1], value]
        else:
            target[key] = value
    return json.dumps(content).encode()


def read_all(scene: Scene) -> None:
    """Read every part of a scene; what it hands out must be numbers."""
    if "grid" in scene.parts:
        grid = scene.grid()
        assert isinstance(scene.metric, bool)
        assert grid.values.isfinite().all()
        assert 0 <= grid.values.min() <= grid.values.max() <= 1
        assert grid.boxes is None or grid.boxes.isfinite().all()
        return
    if scene.is_object and "views" not in scene.parts:
        cloud = scene.cloud()
        assert len(cloud) > 0
        assert cloud.xyz.isfinite().all()
        assert scene.category >= -1
        return
    assert all(remark.count > 0 for remark in scene.remarks)
    for index in range(len(scene.view_names)):
        if "poses" in scene.parts:
            assert np.isfinite(scene.pose(index)).all()
            assert np.isfinite(scene.camera(index).matrix.numpy()).all()
        view = scene.view(index)
        assert view.depth is None or (view.depth.isfinite().all() and view.depth.min() >= 0)
    if "tracks" in scene.parts:
        tracks = scene.tracks()
        assert np.isfinite(tracks.xyz).all()
        assert np.isfinite(tracks.uv).all()
        assert scene.points().xyz.isfinite().all()
    if "pairs" in scene.parts:
        assert scene.pairs().max() < len(scene.view_names)


@pytest.mark.parametrize("built", BUILDERS)
def test_damage_is_one_line(tmp_path, built):
    original, copy = tmp_path / "original", tmp_path / "copy"
    BUILDERS[built](original)
    shutil.copytree(original, copy)
    files = sorted(f.relative_to(original) for f in original.rglob("*") if f.suffix in DAMAGED)
    broken = 0
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        file = files[rng.integers(len(files))]
        data = (original / file).read_bytes()
        other = other_json if file.suffix == ".json" and rng.random() < 0.7 else damaged
        (copy / file).write_bytes(other(data, rng))
        quarantine, failed = Quarantine(), False
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                dataset = open_dataset(copy, quarantine=quarantine)
                for scene in dataset.readable(*(() if built in UNSEEN else ("views",))):
                    read_all(scene)
            except InputError as error:
                line, failed = str(error), True
                assert "\n" not in line, (seed, file)
                assert str(copy) in line or "cannot be read" in line, (seed, file)
                line.encode()
        broken += failed or len(quarantine) > 0
        quarantine.report().encode()
        (copy / file).write_bytes(data)
    assert ROUNDS // 10 < broken < ROUNDS, "damage that nothing notices, or notices always, tests nothing"
