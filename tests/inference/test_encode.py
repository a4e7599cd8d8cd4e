"""`load_encoder` and what the encoder makes of points, images and grids."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clouds import corner, grid, image
from PIL import Image

import geo3d
from geo3d import InputError, load_encoder
from geo3d.geometry import Camera, PointCloud, View
from geo3d.inference import EncodedCloud, EncodedGrid, EncodedImage, EncodedPair, EncodedScene, LoadedEncoder
from geo3d.models import create_model, list_models, model_info, model_options
from geo3d.models.voxel_points import features_at_voxels

LARGE = 30_000_000  # parameters; larger networks run under the slow marker
COSTLY = ("i2p_mae_classifier", "i2p_mae_modelnet40", "i2p_mae_scanobjectnn", "i2p_mae_scanobjectnn_hardest")
SMALL = {
    "sparse_resnet_tiny": {"stem": 8, "depths": (1, 1), "channels": (16, 24), "voxel_size": 0.1},
    "swin3d_tiny": {"depths": (1, 1), "channels": (16, 24), "heads": (2, 2), "windows": (3, 3), "voxel_size": 0.1},
    "i2p_mae_tiny": {
        "points": 64,
        "groups": (24, 12, 6),
        "neighbors": (4, 4, 3),
        "dims": (12, 12, 24),
        "depths": 3 * (1,),
    }
    | {"decoder_dims": (), "embed_dim": 8},
}
_SENSOR = (1.0, 0.8, 0.6)


def small(name: str = "sparse_resnet_tiny", **options: Any) -> LoadedEncoder:
    return load_encoder(name, device="cpu", fresh=0, **(SMALL[name] | options))


def _given(kind: str) -> Any:
    return {"voxels": corner()["xyz"], "points": corner()["xyz"], "image": image(), "grid": grid()}[kind]


def _named() -> list[Any]:
    slow = pytest.mark.slow
    costly = [name for name in list_models() if model_info(name).parameters > LARGE or name in COSTLY]
    return [pytest.param(name, marks=[slow] if name in costly else []) for name in list_models()]


@pytest.mark.parametrize("name", _named())
def test_every_model_encodes(name: str) -> None:
    encoder = load_encoder(name, device="cpu", fresh=0)
    if encoder.kind == "voxels":
        size = {"voxel_size": 0.2}
        size = {"encoder_options": size} if "encoder_options" in model_options(name) else size
        encoder = load_encoder(name, device="cpu", fresh=0, **size)
    out = encoder(_given(encoder.kind))
    stages = encoder.model.feature_info
    channels = [stage.channels for stage in stages]
    assert not encoder.trained
    assert "fresh weights" in repr(encoder)
    assert out.pooled.isfinite().all()
    if encoder.kind in ("voxels", "points"):
        assert out.points.shape == (600, sum(channels))
        assert out.points.dtype == torch.float32
        assert out.points.isfinite().all()
        assert out.pooled.shape == ((sum(channels),) if encoder.kind == "voxels" else (2 * channels[-1],))
        assert out.dropped == 0
    else:
        sides = (40, 56) if encoder.kind == "image" else (16, 16, 8)
        expected = [(s.channels, *(math.ceil(side / s.stride) for side in sides)) for s in stages]
        assert [tuple(values.shape) for values in out.maps] == expected
        assert out.pooled.shape == (channels[-1],)
    one = encoder(_given(encoder.kind), layers=[-1])
    torch.testing.assert_close(one.pooled, out.pooled[-channels[-1] :] if encoder.kind == "voxels" else out.pooled)


@pytest.mark.parametrize("name", ["sparse_resnet_tiny", "swin3d_tiny"])
def test_features_of_points_are_those_of_the_network(name: str) -> None:
    """Against the network called by hand, whose voxels and rows are another way there."""
    encoder, cloud = small(name, signals="XYZ_RGB_NORM"), corner()
    out = encoder(cloud["xyz"], colors=cloud["colors"], normals=cloud["normals"])
    assert (out.filled, out.dropped) == ({}, 0)
    inputs = encoder.model.prepare(
        PointCloud(*(torch.from_numpy(part) for part in (cloud["xyz"], cloud["colors"], cloud["normals"])))
    )
    with torch.no_grad():
        stages = encoder.model.features(inputs)
        expected = features_at_voxels(stages)[inputs.inverse]
    torch.testing.assert_close(out.points, expected)  # of library calls
    torch.testing.assert_close(out.pooled, torch.cat([stage.feats.mean(0) for stage in stages]))
    assert torch.equal(out.voxels.coords, inputs.voxels.coords)
    for layers in ([1], [0, 1], [-1]):
        numbers = encoder.model.stage_numbers(layers)
        columns = torch.tensor([16, 24] if name == "swin3d_tiny" else [8, 16, 24]).cumsum(0).tolist()
        starts = [0, *columns]
        part = torch.cat([expected[:, starts[n] : starts[n + 1]] for n in numbers], 1)
        torch.testing.assert_close(encoder(cloud["xyz"], cloud["colors"], cloud["normals"], layers=layers).points, part)
    inside = (torch.from_numpy(cloud["xyz"]).double() - out.positions()[out.inverse]).abs()
    assert inside.max() <= 0.05 + 1e-6  # half of a voxel, and float32


@pytest.mark.parametrize("name", ["sparse_resnet_tiny", "i2p_mae_tiny"])
def test_rows_without_a_position_are_dropped_and_all_others_stay_in_their_places(name: str) -> None:
    encoder, cloud = small(name), corner()
    whole = encoder(cloud["xyz"], colors=cloud["colors"], sensor=_SENSOR)
    rows = np.sort(np.random.default_rng(0).permutation(660)[:600])
    xyz, colors = np.full((660, 3), np.nan, np.float32), np.zeros((660, 3), np.float32)
    xyz[rows], colors[rows] = cloud["xyz"], cloud["colors"]
    bad = np.setdiff1d(np.arange(660), rows)
    xyz[bad[:20], 1], xyz[bad[20:40]] = np.inf, -np.inf
    xyz[bad[40:], 2] = np.nan
    out = encoder(xyz, colors=colors, sensor=_SENSOR)
    assert out.dropped == 60
    assert torch.equal(out.points[rows], whole.points)
    assert out.points[bad].isnan().all()
    assert torch.equal(out.pooled, whole.pooled)


def test_every_form_of_points_and_colours_is_read_alike() -> None:
    encoder, cloud = small(), corner()
    eight = (255 * cloud["colors"]).round().astype(np.uint8)
    expected = encoder(cloud["xyz"], colors=eight.astype(np.float32) / 255, normals=cloud["normals"])
    read_only = cloud["xyz"].copy()
    read_only.flags.writeable = False
    for xyz in (
        torch.from_numpy(cloud["xyz"]),
        cloud["xyz"].astype(np.float64),
        cloud["xyz"].astype(">f4"),
        np.asfortranarray(cloud["xyz"]),
        np.hstack([cloud["xyz"], cloud["xyz"]])[:, :3],
        cloud["xyz"][::-1][::-1],
        read_only,
        torch.from_numpy(cloud["xyz"]).requires_grad_(),
    ):
        for colors in (eight, torch.from_numpy(eight), eight / 255):
            out = encoder(xyz, colors=colors, normals=3 * cloud["normals"])
            torch.testing.assert_close(out.points, expected.points)  # colours of float64 are rounded
    packed = PointCloud(
        *(torch.from_numpy(t) for t in (cloud["xyz"], eight.astype(np.float32) / 255, cloud["normals"]))
    )
    assert torch.equal(encoder(packed).points, expected.points)
    doubled = {key: np.repeat(value, 3, axis=0) for key, value in cloud.items()}
    again = encoder(doubled["xyz"], colors=np.repeat(eight, 3, axis=0), normals=doubled["normals"])
    torch.testing.assert_close(again.points[::3], expected.points)


def test_results_are_ordinary_tensors_that_a_head_can_learn_from() -> None:
    out = small()(corner()["xyz"])
    head = torch.nn.Linear(out.points.shape[1], 2)
    head(out.points).sum().backward()
    head(out.pooled).sum().backward()
    assert head.weight.grad.isfinite().all()
    assert not out.points.requires_grad


def test_what_is_missing_is_filled_in_and_told() -> None:
    encoder, cloud = small(), corner()
    bare = encoder(cloud["xyz"], sensor=_SENSOR)
    assert bare.filled == {"colors": "mid grey", "normals": "estimated from 16 neighbours, towards the sensor"}
    grey = np.full((600, 3), 0.5)
    told = encoder(cloud["xyz"], colors=grey, sensor=np.array(_SENSOR))
    assert list(told.filled) == ["normals"]
    torch.testing.assert_close(told.points, bare.points)
    assert "mean of the points" in encoder(cloud["xyz"]).filled["normals"]
    outside = encoder(cloud["xyz"], sensor=(-5.0, -5.0, -5.0))
    assert not torch.allclose(outside.points, bare.points)  # normals point the other way

    colors, normals = cloud["colors"].copy(), cloud["normals"].copy()
    colors[:300], normals[:200], normals[200:300] = np.nan, np.nan, 0
    some = encoder(cloud["xyz"], colors=colors, normals=normals, sensor=_SENSOR)
    voxels = len(some.voxels)
    assert some.filled["colors"].startswith("mid grey in ")
    assert some.filled["colors"].endswith(f" of {voxels} voxels")
    assert f" of {voxels} voxels" in some.filled["normals"]
    assert some.points.isfinite().all()
    only_place = small(signals="XYZ")(cloud["xyz"])
    assert only_place.filled == {}


def test_millimetres_far_from_the_origin_are_kept() -> None:
    encoder, cloud = small(), corner()
    lattice = np.round(cloud["xyz"].astype(np.float64) * 1024) / 1024  # exact in float32
    near = encoder(lattice, colors=cloud["colors"], sensor=_SENSOR)
    far = np.array([500_000.0, 5_400_000.0, 300.0])
    for moved in (lattice + far, torch.from_numpy(lattice + far)):
        out = encoder(moved, colors=cloud["colors"], sensor=far + _SENSOR)
        assert torch.equal(out.voxels.coords, near.voxels.coords)
        # Voxels begin where the points do, whose last bits differ by what was taken off.
        torch.testing.assert_close(out.points, near.points, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(out.positions(), near.positions() + torch.from_numpy(far), atol=1e-6, rtol=0)
    stored = PointCloud(
        torch.from_numpy(lattice).float(), torch.from_numpy(cloud["colors"]), origin=torch.from_numpy(far)[None]
    )
    out = encoder(stored, sensor=far + _SENSOR)
    torch.testing.assert_close(out.points, near.points)
    torch.testing.assert_close(out.positions(), near.positions() + torch.from_numpy(far), atol=1e-6, rtol=0)


def test_objects_become_tokens_in_their_own_frame() -> None:
    encoder, xyz = small("i2p_mae_tiny"), 5 + 0.1 * corner()["xyz"].astype(np.float64)
    out = encoder(xyz)
    assert isinstance(out, EncodedCloud)
    inputs = encoder.model.prepare(torch.from_numpy(xyz).float())
    with torch.no_grad():
        tokens = encoder.model.features(inputs)
    for found, expected in zip(out.levels, tokens):
        torch.testing.assert_close(found.feats, expected.feats)
    torch.testing.assert_close(out.pooled, encoder.model.pooled(inputs, "max+mean")[0].detach())
    places = out.positions().numpy()
    assert np.abs(places[:, None] - xyz[None]).sum(2).min(1).max() < 1e-5  # tokens lie at points
    at = np.abs(places[:, None] - xyz[None]).sum(2).argmin(1)
    # The weight of a token at distance 0 is 1e8, that of others some hundred.
    torch.testing.assert_close(out.points[at][:, -24:], out.tokens.feats, atol=1e-3, rtol=1e-3)


def test_pixels_of_a_view_are_rows_and_its_camera_is_the_sensor() -> None:
    camera = Camera(12, 9, 10.0, 10.0, 5.5, 4.0)
    depth = torch.full((9, 12), 2.0)
    depth[:3, :4] = 0
    view = View("v", camera, torch.eye(4, dtype=torch.float64), torch.rand(9, 12, 3), depth)
    out = small()(view)
    assert out.dropped == 12
    assert out.points.shape[0] == 108
    assert out.points.view(9, 12, -1)[:3, :4].isnan().all()
    assert out.filled["normals"].endswith("towards the sensor")
    assert "colors" not in out.filled


def test_images_are_read_bilinearly_between_the_centres_of_cells() -> None:
    encoder = load_encoder("resnet_tiny", device="cpu", fresh=0)
    photo = image(50, 70)
    out = encoder(Image.fromarray(photo))
    assert isinstance(out, EncodedImage)
    assert torch.equal(out.map, encoder(photo).map)
    assert (out.size, out.strides) == ((50, 70), [4, 8, 16, 32])
    rows, columns = np.mgrid[0:7, 0:9]
    centres = np.stack([columns, rows], -1).reshape(-1, 2) * 8 + 3.5
    torch.testing.assert_close(out.at(centres, 1), out.maps[1].flatten(1).T, atol=1e-5, rtol=1e-5)
    halfway = out.at(np.array([[7.5, 3.5]]), 1)[0]
    torch.testing.assert_close(halfway, out.maps[1][:, 0, :2].mean(1), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"pixels must be \(M, 2\)"):
        out.at(np.zeros((3, 3)))


@pytest.mark.parametrize("name", ["croco_tiny", "multiview_tiny"])
def test_pairs_of_images(name: str) -> None:
    encoder = load_encoder(name, device="cpu", fresh=0)
    first, second = image(40, 56), image(40, 56, 1)
    out = encoder([first, second])
    assert isinstance(out, EncodedPair)
    torch.testing.assert_close(out.first.map, encoder(first).map, atol=1e-5, rtol=1e-4)  # in a batch, alone
    torch.testing.assert_close(out.second.map, encoder(second).map, atol=1e-5, rtol=1e-4)
    assert out.decoded.shape == (64, 5, 7)
    assert not torch.allclose(out.decoded, encoder([first, first]).decoded)
    assert load_encoder("resnet_tiny", device="cpu", fresh=0)([first, second]).decoded is None


def test_grids() -> None:
    out = load_encoder("nerf_mae_tiny", device="cpu", fresh=0)(grid())
    assert isinstance(out, EncodedGrid)
    assert out.strides == [4, 8, 16, 32]
    assert out.map.shape[1:] == (1, 1, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e, c: e(c["xyz"][:, :2]), r"positions must be \(N, 3\), metres, got \(600, 2\)"),
        (lambda e, c: e(c["xyz"].reshape(20, 30, 3)), r"cloud.reshape\(-1, 3\)"),
        (lambda e, c: e(c["xyz"][:0]), "the cloud holds no point"),
        (lambda e, c: e(np.full((7, 3), np.nan)), "none of the 7 positions is finite"),
        (lambda e, c: e((1000 * c["xyz"]).astype(int)), "positions must be floats, metres, got torch.int64"),
        (lambda e, c: e("scan.ply"), "must be an array or a tensor of numbers, not a str"),
        (lambda e, c: e(c["xyz"].astype(object)), "not an array of object"),
        (lambda e, c: e(c["xyz"], colors=c["colors"][:5]), r"colors must be \(600, 3\)"),
        (
            lambda e, c: e(c["xyz"], colors=255 * c["colors"]),
            r"colors must lie in \[0, 1\], found .* uint8 of 0 to 255",
        ),
        (lambda e, c: e(c["xyz"], colors=(255 * c["colors"]).astype(int)), "colors must be uint8 or floats"),
        (lambda e, c: e(c["xyz"], normals=np.ones((600, 3), int)), "normals must be floats"),
        (lambda e, c: e(c["xyz"], sensor=(1.0, 2.0)), "sensor must be its position, 3 finite numbers"),
        (lambda e, c: e(c["xyz"], layers=["stage9"]), "there is no 'stage9'"),
        (lambda e, c: e(1e30 * c["xyz"]), "voxel"),
        (lambda e, c: e(PointCloud.pack(2 * [PointCloud(torch.zeros(3, 3))])), "one scene at a time, got 2"),
        (lambda e, c: e(View("v")), "needs depth, camera and pose"),
    ],
)
def test_what_cannot_be_encoded_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        make(small(), corner())
    assert "\n" not in str(told.value)


def test_what_images_and_grids_do_not_take() -> None:
    encoder = load_encoder("resnet_tiny", device="cpu", fresh=0)
    with pytest.raises(InputError, match="colors go with points; this encoder reads image"):
        encoder(image(), colors=image())
    with pytest.raises(InputError, match="one image at a time, or a list of two, got 3"):
        encoder([image(), image(), image()])
    with pytest.raises(InputError, match="one grid at a time, got 2"):
        load_encoder("nerf_mae_tiny", device="cpu", fresh=0)(np.stack([grid(), grid()]))


def test_where_weights_come_from(tmp_path: Path) -> None:
    model = create_model(
        "sparse_resnet_tiny", generator=torch.Generator().manual_seed(5), **SMALL["sparse_resnet_tiny"]
    )
    geo3d.save_model(model, tmp_path / "own.safetensors")
    for source in ((tmp_path / "own.safetensors",), ("sparse_resnet", str(tmp_path / "own.safetensors"))):
        encoder = load_encoder(*source, device="cpu")
        assert encoder.trained
        assert "trained" in repr(encoder)
        assert all(torch.equal(a, b) for a, b in zip(encoder.model.state_dict().values(), model.state_dict().values()))
        fresh = load_encoder(*source, device="cpu", fresh=5)
        assert not fresh.trained
        assert fresh.model.config == model.config
        assert torch.equal(fresh.model.stem.conv_layers[0].kernel, model.stem.conv_layers[0].kernel)
        other = load_encoder(*source, device="cpu", fresh=6)
        assert not torch.equal(other.model.stem.conv_layers[0].kernel, model.stem.conv_layers[0].kernel)
    for arguments, message in (
        (("swin3d_l",), "swin3d_l"),
        ((tmp_path / "none.pth",), "no such checkpoint file"),
        (("nonsense", tmp_path / "own.safetensors"), "'nonsense' is no model"),
    ):
        with pytest.raises(InputError, match=message):
            load_encoder(*arguments)
    for device, message in (
        ("gpu0", "is no device"),
        *([] if torch.cuda.is_available() else [("cuda", "no CUDA device")]),
    ):
        with pytest.raises(InputError, match=message):
            load_encoder("sparse_resnet_tiny", device=device, fresh=0)


def test_several_threads_get_the_numbers_of_one() -> None:
    for name in SMALL:
        encoder = small(name).warm_up(500)
        clouds = [corner(200 + 37 * n, n)["xyz"] for n in range(6)]
        alone = [encoder(xyz).points for xyz in clouds]
        found: list[Any] = [None] * len(clouds)
        start = threading.Barrier(3)

        def work(first: int, encoder=encoder, clouds=clouds, found=found, start=start) -> None:
            start.wait()
            for n in range(first, len(clouds), 3):
                found[n] = encoder(clouds[n]).points

        threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in zip(alone, found, strict=True):
            torch.testing.assert_close(one, other)


def _resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _call_often(count: int) -> tuple[float, float]:
    """MiB by which Python's memory and the process grow over so many calls of varying size."""
    encoder, rng = small(), np.random.default_rng(0)
    clouds = [corner(int(size), seed) for seed, size in enumerate(rng.integers(20, 400, 16))]

    def some(calls: int) -> None:
        for n in range(calls):
            cloud = clouds[n % len(clouds)]
            out = encoder(
                cloud["xyz"], colors=cloud["colors"] if n % 3 else None, normals=cloud["normals"] if n % 2 else None
            )
            assert out.points.shape[0] == len(cloud["xyz"])

    some(32)
    tracemalloc.start()
    python, process = tracemalloc.get_traced_memory()[0], _resident()
    some(count)
    python, process = tracemalloc.get_traced_memory()[0] - python, _resident() - process
    tracemalloc.stop()
    return python / 2**20, process / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_calls(count: int) -> None:
    python, process = _call_often(count)
    assert python < 0.5
    assert process < (3 if count == 100 else 20)  # what the allocator keeps; a result a call were 4 and 400 MiB


_LEAN = """
import sys, time
import torch
before = time.perf_counter()
import geo3d
encoder = geo3d.load_encoder("sparse_resnet_tiny", device="cpu", fresh=0)
out = encoder(torch.rand(2000, 3))
out.points
took = time.perf_counter() - before
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("geo3d.")}
others = {"lightning_fabric", "lightning", "tyro", "matplotlib", "PIL", "trimesh", "rich", "scipy", "open3d"}
rooms &= {"train", "methods", "recipes", "samples", "probe", "datasets", "viz", "cli"}
print(took, sorted(rooms), sorted(others & set(sys.modules)))
"""


def test_no_training_code_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", _LEAN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[1].strip() == "[] []"


@pytest.mark.slow
def test_loading_and_the_first_call_take_less_than_two_seconds_beyond_torch() -> None:
    """On a machine with nothing else to do; the better of three processes, the first of which may read the disk."""
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _LEAN], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.split()[0]))
    assert min(seconds) < 2


def test_scenes_say_what_they_are() -> None:
    out = small()(corner()["xyz"])
    assert isinstance(out, EncodedScene)
    assert out.voxel_size == 0.1
    assert out.voxels.stride == 1
    assert [stage.stride for stage in out.stages] == [1, 2, 4]
