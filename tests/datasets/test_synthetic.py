"""Synthetic rooms and objects: geometry against analytic answers, and the written files through the readers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d.datasets import open_dataset
from geo3d.datasets.scannet import SCANNET20_NYU40_IDS
from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.geometry import Camera

pytest.importorskip("embreex", reason="embreex is not installed: pip install 'geo3d[synthetic]'")

from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.datasets.synthetic.furniture import CATEGORIES, SMALL_OBJECTS, Thing
from geo3d.datasets.synthetic.light import Light
from geo3d.datasets.synthetic.mesh import fine_mesh
from geo3d.datasets.synthetic.render import pixel_rays, render
from geo3d.datasets.synthetic.room import ROOM_KINDS, Room, footprint, furnish_room, thing_footprint
from geo3d.datasets.synthetic.shapes import box, cylinder, ellipsoid, rectangle, vertex_normals
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import Atlas, Palette, Texture
from geo3d.datasets.synthetic.walk import look_at, walk_room

ROOM_SIZE = np.array([4.0, 5.0, 2.6])
TINY = {"scenes": 2, "objects": 1, "views": 4, "width": 64, "height": 48, "mesh_edge": 0.15}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bedroom and two objects at the default size."""
    output = tmp_path_factory.mktemp("written") / "synthetic"
    summary = write_synthetic(SyntheticConfig(out=output, scenes=1, objects=2, workers=1))
    print(summary.report())  # the time a scene takes; shown by -s, never asserted
    assert len(summary.written) == 3
    return output


@pytest.fixture(scope="module")
def scan(written: Path) -> Scene:
    return open_dataset(written / "scannet")[0]


def drawn_room(seed: int, index: int) -> tuple[Room, Palette]:
    """The room that the writer draws for scene ``index``, drawn again."""
    rng = np.random.default_rng([seed, 0, index])
    palette = Palette(rng)
    return furnish_room(list(ROOM_KINDS)[index % len(ROOM_KINDS)], palette, rng), palette


def empty_room() -> Stage:
    x, y, z = ROOM_SIZE[0] / 2, ROOM_SIZE[1] / 2, ROOM_SIZE[2]
    palette = Palette(np.random.default_rng(0))
    sides = [
        ("floor", rectangle((-x, -y, 0), (2 * x, 0, 0), (0, 2 * y, 0), palette.floor())),
        ("ceiling", rectangle((-x, y, z), (2 * x, 0, 0), (0, -2 * y, 0), palette.white())),
        ("wall", rectangle((x, -y, 0), (-2 * x, 0, 0), (0, 0, z), palette.wall())),
        ("wall", rectangle((x, y, 0), (0, -2 * y, 0), (0, 0, z), palette.wall())),
        ("wall", rectangle((-x, y, 0), (2 * x, 0, 0), (0, 0, z), palette.wall())),
        ("wall", rectangle((-x, -y, 0), (0, 2 * y, 0), (0, 0, z), palette.wall())),
    ]
    things = [Thing(category, [patch]) for category, patch in sides]
    return Stage(things, palette, [Light(np.array([0, 0, 2.2]), 0.1, np.full(3, 2.0))], np.random.default_rng(1))


def test_depth_and_normals_of_a_box_room_are_analytic() -> None:
    stage = empty_room()
    camera = Camera.from_fov(80, 60, np.radians(70))
    position, target = np.array([[0.4, -1.3, 1.5]]), np.array([[1.0, 2.0, 0.7]])
    pose = look_at(position, target, np.array([0.2]))[0]
    view = render(stage, camera, pose)

    rays = pixel_rays(camera) @ pose[:3, :3].T
    low, high = np.array([-ROOM_SIZE[0] / 2, -ROOM_SIZE[1] / 2, 0]), np.array([*ROOM_SIZE[:2] / 2, ROOM_SIZE[2]])
    to_wall = np.where(rays > 0, high - position, low - position) / rays  # rays have unit z: this is depth
    axis = to_wall.argmin(1)
    # float32 rays over 5 m: 1e-6 relative, times the obliqueness
    np.testing.assert_allclose(view.depth.ravel(), to_wall.min(1), rtol=2e-5)
    expected = np.zeros_like(rays)
    expected[np.arange(len(rays)), axis] = -np.sign(rays[np.arange(len(rays)), axis])
    np.testing.assert_allclose(view.normal.reshape(-1, 3), expected, atol=1e-6)
    assert set(np.unique(view.semantic)) >= {CATEGORIES["floor"], CATEGORIES["wall"]}
    assert len(np.unique(axis)) == 3, "the view must show walls of different directions and the floor"


def test_facing_a_wall_squarely_gives_its_distance() -> None:
    pose = look_at(np.array([[0.0, -1.0, 1.3]]), np.array([[0.0, 2.0, 1.3]]), np.zeros(1))[0]
    view = render(empty_room(), Camera.from_fov(40, 30, np.radians(40)), pose)
    np.testing.assert_allclose(view.depth, 1.0 + ROOM_SIZE[1] / 2, rtol=1e-6)
    assert (view.instance == 4).all()


def test_light_falls_off_and_shadows() -> None:
    """A lamp 2 m above a floor, a board between: ambient 0.5, and 2 cos / (0.6 + distance^2) where nothing shades."""
    palette = Palette(np.random.default_rng(0))
    grey = palette.add(Texture(np.full((2, 2, 3), 200, np.uint8), (1.0, 1.0)))
    floor = Thing("floor", [rectangle((-3, -3, 0), (6, 0, 0), (0, 6, 0), grey)])
    board = Thing("box", box((0.6, 0.6, 0.02), (0, 0, 0.8), grey))
    lamp = Light(np.array([0.0, 0.0, 2.0]), 0.01, np.full(3, 2.0))
    stage = Stage([floor, board], palette, [lamp], np.random.default_rng(0))

    x = np.array([0.0, 0.2, 1.2, 2.0, 2.8])
    start = np.stack([x, np.full(5, 0.05), np.full(5, 0.5)], 1)
    hit = stage.tracer.cast(start, np.tile([0.0, 0.0, -1.0], (5, 1)))
    _, xy = stage.surface_at(hit["primID"], hit["u"], hit["v"])
    baked = stage.light.at(stage.triangle_patch[hit["primID"]], xy)
    squared = x**2 + 0.05**2 + 2.0**2
    lit = 2 * (2 / np.sqrt(squared)) / (0.6 + squared) * (x > 0.6)
    expected = (0.5 * baked[:, 3] + lit) ** (1 / 2.2)
    # exposure is one factor for the scene; interpolation between samples 12 cm apart costs a percent
    np.testing.assert_allclose(baked[:, 0] / baked[2, 0], expected / expected[2], rtol=0.01)
    assert (baked[:2, 3] < 0.98).all(), "the board closes a little of the sky"
    assert (baked[2:, 3] > 0.99).all()


def test_primitives_face_outwards() -> None:
    middle = np.array([0.0, 0.0, 0.5])
    solids = {
        "box": box((1, 1, 1), (0, 0, 0), 0),
        "cylinder": cylinder(0.5, 1.0, (0, 0, 0), 0),
        "ellipsoid": [ellipsoid((0.5, 0.4, 0.5), middle, 0)],
        "cushion": [ellipsoid((0.5, 0.4, 0.5), middle, 0, 0.4)],
    }
    for name, patches in solids.items():
        for patch in patches:
            outwards = ((patch.corners - middle) * vertex_normals(patch.corners)).sum(-1)
            assert (outwards > 0).all(), name


def test_atlas_returns_texels_and_their_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    atlas = Atlas([Texture(np.zeros((4, 4, 3), np.uint8), (1, 1)), Texture(image, (2.0, 1.0))])
    rows, columns = np.array([0, 5, 63, 63]), np.array([0, 9, 127, 0])
    uv = np.stack([(columns + 0.5) / 128 * 2.0, (rows + 0.5) / 64], 1).astype(np.float32)
    number = np.ones(4, np.int32)
    exact = atlas.lookup(number, uv, np.zeros(4, np.float32))
    np.testing.assert_allclose(exact, image[rows, columns], atol=0.02)  # float32 weights of 255
    repeated = atlas.lookup(number, uv + np.float32([2.0, 3.0]), np.zeros(4, np.float32))
    np.testing.assert_allclose(repeated, image[rows, columns], atol=0.1)  # uv of 3 costs two more bits
    # six levels halve 64 texels to one; each rounds to uint8 once
    blurred = atlas.lookup(number, uv, np.full(4, 10.0, np.float32))
    np.testing.assert_allclose(blurred.mean(0), image.mean((0, 1)), atol=4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ROOM_KINDS)
def test_furniture_stands_free_on_the_floor_or_hangs_on_walls(kind: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 7])
    room = furnish_room(kind, Palette(rng), rng)
    assert len(room.taken) >= 6, "a room must be furnished"
    for i, first in enumerate(room.taken):
        assert (np.abs(first.corners) <= room.size[:2] / 2 + 1e-9).all()
        assert first.high <= room.size[2]
        for second in room.taken[i + 1 :]:
            assert not first.overlaps(second)
    things = room.things[6:-1]  # less floor, walls, ceiling; less the ceiling lamp
    for thing in things:
        low = footprint([thing]).low
        assert low >= -1e-9
        on_floor = low < 1e-6
        on_another = any(other is not thing and abs(footprint([other]).high - low) < 0.2 for other in things)
        on_wall = (room.size[:2] / 2 - np.abs(footprint([thing]).center) - footprint([thing]).half).min() < 0.2
        assert on_floor or on_another or on_wall, f"{thing.category} floats"
    standing = [thing_footprint(t) for t in things if t.position[2] == 0 and t.category != "mat"]
    for i, first in enumerate(standing):
        assert not any(first.overlaps(second) for second in standing[i + 1 :])


def test_ten_rooms_hold_all_evaluated_classes() -> None:
    present = {CATEGORIES[t.category] for index in range(10) for t in drawn_room(0, index)[0].things}
    assert set(SCANNET20_NYU40_IDS) <= present


@pytest.mark.parametrize("index", range(3))
def test_walk_keeps_clear_and_looks_at_furniture(index: int) -> None:
    room, palette = drawn_room(3, index)
    rng = np.random.default_rng(index)
    stage = Stage(room.things, palette, room.lights, rng)
    camera = Camera.from_fov(80, 60, np.radians(64))
    poses = walk_room(stage, room.size, camera, 20, rng)
    assert ((poses[:, 2, 3] >= 1.2) & (poses[:, 2, 3] <= 1.8)).all()
    seen, backs = set(), 0.0
    for pose in poses:
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) > 0
        view = render(stage, camera, pose)
        assert (view.depth > 0).all(), "a closed room has no holes"
        assert view.depth.min() > 0.3
        assert len(np.unique(view.instance)) >= 4, "not staring at a blank wall"
        assert 60 < view.color.mean() < 200, "well exposed"
        seen |= set(np.unique(view.instance).tolist())
        rays = pixel_rays(camera) @ pose[:3, :3].T
        hit = stage.tracer.cast(np.broadcast_to(pose[:3, 3], rays.shape), rays)
        backs += ((stage.tracer.normal[hit["primID"]] * rays).sum(1) > 0).mean() / len(poses)
    assert len(seen) >= 0.85 * len(room.things), "the walk covers the room"
    assert backs < 0.002, "surfaces face outwards; a lamp's open shade may show its inside"


def test_mesh_follows_the_rendered_surfaces() -> None:
    """A vertex of the mesh lies on a surface, and its colour is what a view sees there."""
    room, palette = drawn_room(5, 0)
    stage = Stage(room.things, palette, room.lights, np.random.default_rng(0))
    mesh = fine_mesh(stage, 0.04)
    edges = np.linalg.norm(mesh.vertices[mesh.faces] - mesh.vertices[np.roll(mesh.faces, 1, 1)], axis=-1)
    assert edges.max() < 0.08, "a diagonal of quads whose sides are at most 4 cm"
    assert np.median(edges) > 0.02
    triangle = mesh.vertices[mesh.faces[::37]].astype(np.float64)
    normal = np.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    above = triangle.mean(1) + 5e-4 * normal
    hit = stage.tracer.cast(above, -normal)
    # quads that are not flat (cushions) are divided along other diagonals than the rays' triangles
    assert np.mean(np.abs(hit["tfar"] - 5e-4) < 5e-4) > 0.97
    same = stage.instance[stage.triangle_patch[hit["primID"]]] == mesh.instance[mesh.faces[::37, 0]]
    assert same.mean() > 0.98  # things touch: half a millimetre above a bottom there may be the top below it
    assert 30_000 < len(mesh.vertices) < 200_000
    for array in (mesh.semantic, mesh.instance):
        assert (array == array[mesh.segment]).all(), "a segment lies in one instance"


def matched(first, second) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels of ``first`` reprojected into ``second``: depth less the depth seen there, and both colours."""
    xyz, pixel = first.world_points()
    camera_from_world = torch.linalg.inv(second.world_from_camera)
    local = xyz @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    u, v = second.camera.project(local).round().long().unbind(-1)
    inside = (local[:, 2] > 0.1) & (u >= 0) & (v >= 0) & (u < second.camera.width) & (v < second.camera.height)
    u, v = u[inside], v[inside]
    difference = local[inside, 2] - second.depth[v, u]
    return difference, first.image.reshape(-1, 3)[pixel][inside], second.image[v, u]


def test_views_agree_in_depth_and_colour(scan: Scene) -> None:
    count = len(scan.view_names)
    overlaps = []
    for i in range(0, count - 1, 3):
        first, second = scan.view(i), scan.view(i + 1)
        difference, color, color_there = matched(first, second)
        # Nearest pixels: half a pixel moves the depth by a few millimetres on slanted surfaces, and by anything at
        # outlines. A point *before* what the other view sees is a contradiction; one behind it is merely hidden.
        assert (difference < -0.05).float().mean() < 0.01
        visible = difference.abs() < 0.03
        overlaps.append(float(visible.sum()) / first.image[..., 0].numel())
        assert visible.float().mean() > 0.7
        assert difference[visible].abs().median() < 0.005
        apart = (color - color_there)[visible].abs().mean(-1)
        shuffled = (color - color_there.roll(len(color) // 2, 0))[visible].abs().mean(-1)
        # JPEG and half a pixel of texture: a few of 255 steps; unrelated pixels differ by a fifth
        assert apart.median() < 0.03
        assert shuffled.median() > 3 * apart.median()
    assert min(overlaps) > 0.3
    assert np.mean(overlaps) > 0.5


def test_scan_reads_back_as_the_room_that_was_drawn(written: Path, scan: Scene) -> None:
    room, _ = drawn_room(0, 0)
    mesh = scan.mesh()
    groups = json.loads((scan.root / f"{scan.name}.aggregation.json").read_text())["segGroups"]
    assert len(groups) == len(room.things) == len(np.unique(mesh.instance))
    assert [g["label"] for g in groups] == [t.category for t in room.things]
    nyu40 = scan.nyu40()
    assert (mesh.instance >= 0).all()
    for number, thing in enumerate(room.things):
        own = mesh.instance == number
        assert (nyu40[own] == CATEGORIES[thing.category]).all()
        corners = np.concatenate([p.corners.reshape(-1, 3) for p in thing.world_patches()])
        # float32 vertices some metres from the origin, turned there and back: micrometres
        assert (mesh.vertices[own] >= corners.min(0) - 1e-4).all()
        assert (mesh.vertices[own] <= corners.max(0) + 1e-4).all()
    table = (written / "scannet" / "scannetv2-labels.combined.tsv").read_text().splitlines()
    columns = table[0].split("\t")
    rows = [dict(zip(columns, line.split("\t"))) for line in table[1:]]
    assert {r["raw_category"]: int(r["nyu40id"]) for r in rows} == CATEGORIES


def test_scan_is_not_axis_aligned_on_disk(scan: Scene) -> None:
    """The reader must apply axisAlignment, as with real scans: the files hold a turned and moved room."""
    raw = scan.axis_alignment()
    assert np.abs(raw - np.eye(4)).max() > 0.1
    np.testing.assert_allclose(raw[:3, :3] @ raw[:3, :3].T, np.eye(3), atol=1e-6)


def test_depth_lies_on_the_mesh(scan: Scene) -> None:
    from scipy.spatial import cKDTree

    tree = cKDTree(scan.mesh().vertices)
    for i in (0, len(scan.view_names) // 2):
        xyz, _ = scan.view(i).world_points()
        distance = tree.query(xyz[::17].numpy())[0]
        # the nearest vertex of a 4 cm grid is at most half its diagonal away, and depth is in millimetres
        assert np.quantile(distance, 0.99) < 0.04 * np.sqrt(0.5) + 0.002


def test_tracks_are_true(written: Path) -> None:
    for scene in open_dataset(written / "mvimgnet"):
        tracks = scene.tracks()
        assert len(tracks.xyz) > 500
        assert np.bincount(tracks.point, minlength=len(tracks.xyz)).min() >= 3
        colors = np.empty((len(tracks.view), 3))
        for i in range(len(scene.view_names)):
            rows = np.flatnonzero(tracks.view == i)
            assert len(rows) > 50, "every view sees points"
            camera_from_world = np.linalg.inv(scene.pose(i))
            xyz = tracks.xyz[tracks.point[rows]] @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
            projected = scene.camera(i).project(torch.from_numpy(xyz)).numpy()
            assert np.linalg.norm(projected - tracks.uv[rows], axis=1).max() < 0.5
            u, v = np.rint(tracks.uv[rows]).astype(int).T
            colors[rows] = np.asarray(scene.image(i).convert("RGB"), dtype=float)[v, u] / 255
        # Were points observed where something hides them, colours of one track would differ as those of strangers.
        count = np.bincount(tracks.point)[:, None]
        mean = np.stack([np.bincount(tracks.point, colors[:, k]) for k in range(3)], 1) / count
        spread = np.abs(colors - mean[tracks.point]).mean(1)
        assert np.median(spread) < 0.03
        assert np.quantile(spread, 0.95) < 0.15


def test_pycolmap_reads_the_model(written: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed: pip install 'geo3d[test]'")
    folder = written / "mvimgnet" / "0" / "00000000"
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert model.num_reg_images() == len(list((folder / "images").iterdir()))
    # Recomputed by COLMAP with its own convention of pixel centres
    assert model.compute_mean_reprojection_error() < 1e-6
    before = {i: p.error for i, p in model.points3D.items()}
    model.update_point_3d_errors()
    assert max(abs(p.error - before[i]) for i, p in model.points3D.items()) < 1e-6


def test_masks_show_the_object(written: Path) -> None:
    for scene in open_dataset(written / "mvimgnet"):
        points = scene.tracks()
        for i in range(len(scene.view_names)):
            mask = scene.mask(i)
            assert mask.shape == (240, 320)
            assert 0.01 < mask.mean() < 0.6
        first = scene.mask(0)
        uv = np.rint(points.uv[points.view == 0]).astype(int)
        assert first[uv[:, 1], uv[:, 0]].mean() > 0.1, "a share of the points lies on the object"
    names = (written / "mvimgnet" / "mvimgnet_category.txt").read_text().splitlines()
    assert names == [f"{i},{name}" for i, name in enumerate(SMALL_OBJECTS)]


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_files_depend_on_the_seed_alone(tmp_path: Path) -> None:
    seen = []
    config = SyntheticConfig(out=tmp_path / "alone", workers=1, **TINY)
    write_synthetic(config, lambda done, total, name: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    write_synthetic(replace(config, out=tmp_path / "together", workers=2))
    alone = digests(tmp_path / "alone")
    assert alone == digests(tmp_path / "together")
    assert not [name for name in alone if "unfinished" in name]

    one = {"scenes": 1, "objects": 0}
    write_synthetic(replace(config, out=tmp_path / "fewer", **one))
    fewer = digests(tmp_path / "fewer")
    scene = [name for name in fewer if "scene0000_00" in name]
    assert scene
    assert all(fewer[name] == alone[name] for name in scene), "a scene does not depend on how many there are"
    write_synthetic(replace(config, out=tmp_path / "other", seed=1, **one))
    other = digests(tmp_path / "other")
    assert all(other[name] != fewer[name] for name in scene)


def test_a_second_run_makes_only_what_is_missing(tmp_path: Path) -> None:
    config = SyntheticConfig(out=tmp_path / "out", workers=1, **TINY)
    write_synthetic(config)
    before = digests(config.out)
    lost = config.out / "scannet" / "scans" / "scene0001_00"
    stamps = {p: p.stat().st_mtime_ns for p in (config.out / "scannet" / "scans" / "scene0000_00").iterdir()}
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    interrupted = config.out / "unfinished" / "scannet" / "scans" / "scene0001_00"
    interrupted.mkdir(parents=True)
    (interrupted / "half.sens").write_bytes(b"x")

    summary = write_synthetic(config)
    assert summary.written == ["scannet/scans/scene0001_00"]
    assert len(summary.kept) == 2
    assert digests(config.out) == before
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    config = SyntheticConfig(out=tmp_path / "out", workers=1, **{**TINY, "scenes": 0})
    write_synthetic(config)
    with pytest.raises(InputError, match=r"seed 0 instead of 5.*give another output"):
        write_synthetic(replace(config, seed=5))
    write_synthetic(replace(config, workers=2))  # how the work is shared is no part of what is made
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt, which is not synthetic data"):
        write_synthetic(replace(config, out=foreign))
    with pytest.raises(InputError, match="cannot be written"):
        write_synthetic(replace(config, out=foreign / "thesis.txt"))
    (foreign / "synthetic.json").write_text("[]")
    with pytest.raises(InputError, match="not a manifest"):
        write_synthetic(replace(config, out=foreign))
    (foreign / "synthetic.json").unlink()
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scenes": 0, "objects": 0}, "both 0"),
        ({"views": 1}, "views must be at least 2"),
        ({"width": 0}, "width must be at least"),
        ({"mesh_edge": 0.0}, "mesh_edge"),
        ({"seed": -1}, "seed"),
    ],
)
def test_unusable_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticConfig(**values)
