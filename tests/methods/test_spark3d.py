"""SparK over voxels: masks, what is predicted where, that nothing leaks, and the loss by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geo3d import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.spark3d import (
    ATTRIBUTES,
    SparK3D,
    SparK3DConfig,
    copied_occupancy,
    crop_cells,
    draw_kept,
    without_strays,
)
from geo3d.models.voxel_decoder import MaskedVoxelDecoder
from geo3d.nn.topology import Topology

CONFIG = SparK3DConfig(voxel_size=0.05, max_voxels=600, decoder_width=32, decoder_context=1)
ENCODERS = {
    "sparse_resnet_tiny": {},
    "swin3d_tiny": {},
    "swin3d_tiny, thirds": {"model": "swin3d_tiny", "first_stride": 3, "signals": "XYZ_NORM"},
}


def make_cloud(count: int = 12_000, seed: int = 0) -> PointCloud:
    """A floor and a wall of 2 m, coloured by place."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, count, generator=generator) * 2
    floor = torch.arange(count) % 2 == 0
    xyz = torch.stack([u, torch.where(floor, v, 0), torch.where(floor, 0, v)], 1)
    colors = 0.5 + 0.3 * torch.sin(3 * xyz) + 0.05 * torch.randn(count, 3, generator=generator)
    normals = torch.where(floor.unsqueeze(1), torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0]))
    return PointCloud(xyz, colors.clamp(0, 1), normals)


class MemoryScenes:
    """Clouds as :class:`PointScenes` hands them out."""

    def __init__(self, *clouds: PointCloud, metric: bool = True) -> None:
        self.clouds, self._metric = clouds, metric

    def __len__(self) -> int:
        return len(self.clouds)

    def cloud(self, index: int) -> PointCloud:
        return self.clouds[index]

    def metric(self, index: int) -> bool:
        return self._metric

    def describe(self, index: int) -> str:
        return f"memory: {index}"


def make_method(encoder: str = "sparse_resnet_tiny", **changes) -> SparK3D:
    options = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    options |= {"model": encoder} | ENCODERS.get(encoder, {}) | changes
    return SparK3D(SparK3DConfig(**options), torch.Generator().manual_seed(0))


def make_batch(method: SparK3D, *clouds: PointCloud) -> dict:
    samples = method.samples(MemoryScenes(*clouds))
    return method.collate([samples.draw(i, np.random.default_rng(i)) for i in range(len(clouds))])


def from_voxels(method: SparK3D, *scenes: list[tuple[int, int, int]], kept: list[bool]) -> dict:
    """A batch of given voxels, ascending in each scene, with random points in them."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([voxel for scene in scenes for voxel in scene], dtype=torch.float32).view(-1, 3)
    inside, colors = torch.rand(2, len(corners), 3, generator=generator)
    normals = F.normalize(torch.randn(len(corners), 3, generator=generator), dim=1)
    return {
        "xyz": corners + 0.98 * inside,
        "colors": colors,
        "normals": normals,
        "kept": torch.tensor(kept, dtype=torch.bool),
        "offsets": torch.tensor([0, *(len(scene) for scene in scenes)]).cumsum(0),
    }


@pytest.mark.parametrize(
    ("cells", "ratio", "kept"), [(10, 0.6, 4), (1, 0.9, 1), (3, 0.9, 1), (25, 0.5, 12), (35, 0.5, 18), (0, 0.6, 0)]
)
def test_as_many_cells_are_kept_as_the_ratio_says(cells: int, ratio: float, kept: int) -> None:
    """Halves are rounded to even, as published."""
    assert draw_kept(cells, ratio, np.random.default_rng(0)).sum() == kept


def test_all_cells_are_masked_with_equal_chance() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([draw_kept(20, 0.6, rng) for _ in range(4000)], 0)
    np.testing.assert_allclose(share, 0.4, atol=0.03)  # one sigma is 0.008


def test_the_crop_holds_whole_cells_around_one_of_them() -> None:
    cells = torch.randint(0, 6, (900, 3), generator=torch.Generator().manual_seed(0))
    rows = crop_cells(cells, 300, np.random.default_rng(1))
    assert 200 < len(rows) <= 300
    assert (rows.diff() > 0).all()
    inside = {tuple(c) for c in cells[rows].tolist()}
    outside = {tuple(c) for c in np.delete(cells.numpy(), rows.numpy(), 0).tolist()}
    assert not inside & outside
    kept, left = (torch.tensor(sorted(s)).float() for s in (inside, outside))
    reach = torch.cdist(kept, kept).amax(1)
    assert (reach <= torch.cdist(kept, left).amin(1) + 1).any()  # a ball of cells
    alone = crop_cells(cells, 1, np.random.default_rng(0))  # a cell, however many voxels it holds
    assert len(cells[alone].unique(dim=0)) == 1 < len(alone)
    assert len(crop_cells(cells[:9], 9, np.random.default_rng(0))) == 9


def test_samples_have_one_point_a_voxel_and_a_mask_of_the_crop() -> None:
    method = make_method()
    samples = method.samples(MemoryScenes(make_cloud()))
    sample, again, other = (samples.draw(0, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert 300 < len(sample["xyz"]) <= CONFIG.max_voxels
    assert len(sample["xyz"].floor().unique(dim=0)) == len(sample["xyz"])
    cells = (sample["xyz"].floor() // 8).unique(dim=0)
    assert sample["kept"].shape == (len(cells),)
    assert sample["kept"].sum() == round(0.4 * len(cells))
    assert (sample["xyz"] >= 0).all()
    assert all(torch.equal(sample[name], again[name]) for name in sample)
    assert not torch.equal(sample["xyz"], other["xyz"])
    # Scenes differ in where the grid lies.
    assert len({float(samples.draw(0, np.random.default_rng(s))["xyz"][:, 2].min()) for s in range(5)}) == 5


def test_scenes_of_unknown_scale_are_brought_to_one() -> None:
    cloud = make_cloud()
    method = make_method(max_voxels=10**6, scale=(1.0, 1.0), extent=40.0)
    sizes = []
    for factor in (0.01, 1.0, 300.0):
        scenes = MemoryScenes(PointCloud(factor * cloud.xyz, cloud.colors, cloud.normals), metric=False)
        sample = method.samples(scenes).draw(0, np.random.default_rng(0))
        sizes.append((sample["xyz"].amax(0) - sample["xyz"].amin(0)).max().item())
    assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-4)
    assert 40 < sizes[0] < 56  # the outer tenth of the points on each side spreads wide here: the tip of a corner
    single = MemoryScenes(PointCloud(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3)), metric=False)
    assert len(method.samples(single).draw(0, np.random.default_rng(0))["xyz"]) == 1


@pytest.mark.parametrize("factor", [0.01, 300.0])
def test_stray_points_are_neither_measured_nor_kept(factor: float) -> None:
    """A ball's surface with every eighth point astray, up to twelve times as far out."""
    generator = torch.Generator().manual_seed(0)
    ball = F.normalize(torch.randn(3500, 3, generator=generator), dim=1)
    strays = F.normalize(torch.randn(500, 3, generator=generator), dim=1)
    strays *= 1.6 + 10 * torch.rand(500, 1, generator=generator)
    colors = torch.cat([torch.zeros_like(ball), torch.ones_like(strays)])
    scenes = MemoryScenes(PointCloud(factor * (torch.cat([ball, strays]) + 3), colors), metric=False)
    method = make_method(signals="XYZ_RGB", max_voxels=10**6, scale=(1.0, 1.0), extent=40.0)
    sample = method.samples(scenes).draw(0, np.random.default_rng(0))
    stray = sample["colors"][:, 0] == 1
    assert stray.sum() <= 5  # those that have others about them
    sides = sample["xyz"][~stray].amax(0) - sample["xyz"][~stray].amin(0)
    assert (sides > 34).all()  # strays among the middle 80 % of the points widen these by a tenth
    assert (sides < 41).all()
    cells = (sample["xyz"].floor() // 8).unique(dim=0)
    assert len(cells) <= 7**3
    assert (cells.amax(0) - cells.amin(0)).max() <= 8


def test_points_without_company_are_kept_where_none_has_any() -> None:
    lone = torch.tensor([[0.0, 0, 0], [20, 0, 0], [40, 0, 0], [900, 0, 0]])
    assert without_strays(lone, 40.0).tolist() == [0, 1, 2]
    crowd = torch.cat([lone, torch.tensor([[1.0, 1, 1], [1, 2, 1], [1, 1, 3]])])
    assert without_strays(crowd, 40.0).tolist() == [0, 4, 5, 6]


def test_what_the_encoder_reads_must_be_there_and_the_rest_may_lack() -> None:
    bare = PointCloud(make_cloud().xyz, make_cloud().colors)
    with pytest.raises(InputError, match="memory: 0: the scene has no normals; choose signals without them"):
        make_method().samples(MemoryScenes(bare)).draw(0, np.random.default_rng(0))
    for signals, cloud in (("XYZ_RGB", bare), ("XYZ", PointCloud(bare.xyz))):
        method = make_method(signals=signals)
        output = method(make_batch(method, cloud, cloud))
        assert output.loss.isfinite()
        assert output.losses["normal"] == 0
        assert (output.losses["color"] == 0) == (signals == "XYZ")
    # Beside a scene that has normals, one that has none does not weigh.
    method = make_method(signals="XYZ")
    both = method(make_batch(method, make_cloud(), bare)).losses["normal"]
    assert both > 0


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_inside_masked_cells_changes_a_bit_of_the_predictions(encoder: str, training: bool) -> None:
    """Other voxels, points, colours and normals in the same masked cells: equal predictions, other targets."""
    method = make_method(encoder).train(training)
    batch = make_batch(method, make_cloud(), make_cloud(seed=1))
    masked = ~batch["kept"]
    points, cells, voxels = method.split(batch)
    assert 0 < cells.size < voxels.size
    generator = torch.Generator().manual_seed(9)
    # What is kept, and for each masked cell from 1 to 60 voxels at random places.
    rows = [[], []]
    for batch_index, *corner in cells.coords.tolist():
        count = int(torch.randint(1, 61, (), generator=generator))
        places = torch.randperm(method.cell**3, generator=generator)[:count]
        columns = [places // method.cell**axis % method.cell for axis in range(3)]
        rows[batch_index].append(
            torch.tensor(corner) + torch.stack(columns, 1) + 0.9 * torch.rand(count, 3, generator=generator)
        )
    scenes, others = [], ("colors", "normals")
    kept_rows = batch_rows_of(batch, points)
    for scene in range(2):
        own = kept_rows[(kept_rows >= batch["offsets"][scene]) & (kept_rows < batch["offsets"][scene + 1])]
        new = torch.cat(rows[scene])
        drawn = {name: torch.rand(len(new), 3, generator=generator) for name in others}
        scenes.append(
            {"xyz": torch.cat([batch["xyz"][own], new]), "kept": batch["kept"][:0]}
            | {name: torch.cat([batch[name][own], drawn[name]]) for name in others}
        )
    changed = method.collate(scenes) | {"kept": batch["kept"]}
    assert torch.equal(method.split(changed)[1].coords, cells.coords)

    outputs = []
    for one in (batch, changed):
        torch.manual_seed(3)  # dropped paths
        outputs.append(make_method(encoder).train(training)(one))
    assert torch.equal(outputs[0].extras["sites"], outputs[1].extras["sites"])
    torch.testing.assert_close(*(output.extras["predicted"] for output in outputs))  # of library calls
    assert not torch.equal(outputs[0].extras["occupied"], outputs[1].extras["occupied"])
    assert outputs[0].loss != outputs[1].loss
    assert len(outputs[0].extras["sites"]) == masked.sum() * method.cell**3


def batch_rows_of(batch: dict, points) -> torch.Tensor:
    """Rows of the batch that the visible points are."""
    rows = {tuple(xyz): row for row, xyz in reversed(list(enumerate(batch["xyz"].tolist())))}
    return torch.tensor([rows[tuple(xyz)] for xyz in points.xyz.tolist()])


def test_what_is_kept_does_change_them() -> None:
    method = make_method()
    batch = make_batch(method, make_cloud())
    before = method(batch).extras["predicted"]
    kept = method.split(batch)[0]
    changed = batch | {"colors": batch["colors"].clone()}
    changed["colors"][batch_rows_of(batch, kept)[0]] += 0.3
    assert not torch.equal(method(changed).extras["predicted"], before)


def test_sites_are_all_voxels_of_masked_cells_and_truth_is_what_is_there() -> None:
    method = make_method()
    batch = make_batch(method, make_cloud(), make_cloud(seed=1))
    _, cells, voxels = method.split(batch)
    sites, _ = method.predict(method.split(batch)[0], cells)
    expected = {
        (b, x + dx, y + dy, z + dz)
        for b, x, y, z in cells.coords.tolist()
        for dx in range(8)
        for dy in range(8)
        for dz in range(8)
    }
    assert [tuple(site) for site in sites.coords.tolist()] == sorted(expected)
    masked = method.truth(sites, voxels)
    there = {tuple(voxel): row for row, voxel in enumerate(voxels.coords.tolist())}
    assert masked.row.tolist() == [there.get(tuple(site), -1) for site in sites.coords.tolist()]
    assert torch.equal(cells.coords[masked.cell, 1:], sites.coords[:, 1:] // 8 * 8)


@pytest.mark.parametrize("relative", [True, False])
def test_loss_by_hand(relative: bool) -> None:
    """Two scenes, of which one has a masked cell of a single voxel; means over voxels of a cell, then over cells."""
    method = make_method(
        cell_colors=relative,
        occupancy_weight=2.0,
        occupied_weight=4.0,
        offset_weight=0.25,
        color_weight=3.0,
        normal_weight=0.5,
    ).eval()
    first = [(0, 0, 0), (0, 1, 0), (1, 8, 2), (3, 9, 2), (3, 12, 5)]
    second = [(0, 0, 0), (0, 3, 17)]
    batch = from_voxels(method, first, second, kept=[True, False, True, False])
    batch["normals"][3] = torch.nan
    output = method(batch)
    predicted, sites = output.extras["predicted"].detach().double(), output.extras["sites"].tolist()
    assert len(sites) == 2 * 512
    truth = {(0, *voxel): row for row, voxel in enumerate(first)} | {(1, *v): 5 + row for row, v in enumerate(second)}
    entropies: dict[int, list[float]] = {0: [], 1: []}
    errors: dict[str, dict[int, list[float]]] = {name: {0: [], 1: []} for name in ATTRIBUTES}
    colors = {0: batch["colors"][2:5].double(), 1: batch["colors"][6:].double()}
    for site, out in zip(sites, predicted):
        row = truth.get(tuple(site))
        scene = site[0]
        probability = 1 / (1 + math.exp(-out[0]))
        entropies[scene].append(-math.log(1 - probability) if row is None else -4 * math.log(probability))
        if row is None:
            continue
        cell = colors[scene]
        deviation = (cell.var(0, correction=0) + 1e-4).sqrt()
        target = {
            "offset": batch["xyz"][row].double() - torch.tensor(site[1:]) - 0.5,
            "color": (batch["colors"][row].double() - cell.mean(0)) / deviation if relative else batch["colors"][row],
            "normal": batch["normals"][row].double(),
        }
        for name, columns in ATTRIBUTES.items():
            if not (name == "normal" and row == 3):
                errors[name][scene].append((out[columns] - target[name]).square().sum().item())
    expected = {"occupancy": 2 * np.mean([np.mean(entropies[scene]) for scene in (0, 1)])}
    weights = {"offset": 0.25, "color": 3.0, "normal": 0.5}
    expected |= {
        name: weights[name] * np.mean([np.mean(found[scene]) for scene in (0, 1)]) for name, found in errors.items()
    }
    # float32 against float64: 1.3e-7 measured.
    assert {name: loss.item() for name, loss in output.losses.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_one_cell_no_voxel_or_nothing_masked_is_no_accident(encoder: str) -> None:
    method = make_method(encoder, signals="XYZ_RGB_NORM").train()
    one = [(0, 0, 0), (1, 2, 1)]
    far = [(0, 0, 0), (40, 0, 0)]
    for scenes, kept in (
        ([one], [True]),
        ([[]], []),
        ([[], []], []),
        ([one, [], far], [True, True, False]),
        ([far], [False, True]),
        ([far, far], [True, True, True, True]),
    ):
        output = method(from_voxels(method, *scenes, kept=kept))
        assert output.loss.isfinite()
        assert all(value.isfinite() for value in (*output.losses.values(), *output.metrics.values()))
        if all(kept):
            assert output.loss == 0
        method.zero_grad()
        output.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    assert all(buffer.isfinite().all() for buffer in method.buffers())


def test_masks_that_do_not_fit_are_refused() -> None:
    method = make_method()
    batch = make_batch(method, make_cloud())
    with pytest.raises(InputError, match=r"kept must be \(\d+,\), one for each occupied cell"):
        method(batch | {"kept": batch["kept"][1:]})


def test_the_baseline_copies_the_nearest_cell() -> None:
    method = make_method()
    # Kept: a row along x in cell 0, and one along y in cell 3; masked: cell 1 and cell 2.
    row = [(x, 0, 0) for x in range(8)]
    other = [(24, y, 0) for y in range(8)]
    batch = from_voxels(method, [*row, (9, 5, 5), (17, 5, 5), *other], kept=[True, False, False, True])
    _, cells, _ = method.split(batch)
    copied = copied_occupancy(method, batch, cells.refine(8))
    sites = cells.refine(8).coords[copied].tolist()
    assert sites == [[0, 8 + x, 0, 0] for x in range(8)] + [[0, 16, y, 0] for y in range(8)]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_weights_learn(encoder: str) -> None:
    method = make_method(encoder).train()
    batch = make_batch(method, make_cloud(), make_cloud(seed=1))
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        output = method(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert output.metrics["occupancy_iou"] > 0.2
    assert all(p.grad is not None for p in method.parameters())
    assert method.no_weight_decay() == {f"decoder.densify.{i}.token" for i in range(len(method.encoder.strides) - 1)}


def test_filled_is_what_is_kept_and_what_is_predicted() -> None:
    method = make_method().eval()
    batch = make_batch(method, make_cloud(), make_cloud(seed=1))
    with torch.no_grad():
        output = method(batch)
    clouds = method.clouds(batch, output, scene=1)
    inside = batch["offsets"][1] <= torch.arange(len(batch["xyz"]))
    assert torch.equal(clouds["original"].xyz, batch["xyz"][inside])
    kept = len(clouds["masked"])
    assert 0 < kept < len(clouds["original"])
    assert torch.equal(clouds["filled"].xyz[:kept], clouds["masked"].xyz)
    occupied = (output.extras["predicted"][:, 0] > 0) & (output.extras["sites"][:, 0] == 1)
    assert len(clouds["filled"]) == kept + occupied.sum()
    added = clouds["filled"].xyz[kept:]
    assert torch.equal(added.floor().int(), output.extras["sites"][occupied, 1:])
    picture = method.picture(batch, output)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 3 * 520
    assert (picture[:, 1040:] != 255).any(-1).sum() > (picture[:, :520] != 255).any(-1).sum() > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": math.nan}, "mask_ratio"),
        ({"max_voxels": 0}, "max_voxels"),
        ({"scale": (1.2, 0.8)}, "scale"),
        ({"decoder_context": -1}, "decoder_context"),
        ({"extent": -1.0}, "extent"),
        ({"color_weight": -1.0}, "color_weight"),
        ({"occupied_weight": 0.0}, "occupied_weight"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparK3DConfig(**changes)


def test_models_that_read_no_voxels_are_refused() -> None:
    with pytest.raises(InputError, match="must read voxels"):
        make_method(model="croco_tiny")
    with pytest.raises(InputError, match="two stages or more"):
        MaskedVoxelDecoder((1,), (8,), 16, 0, 1)


def test_no_topology_is_too_coarse_for_its_batch() -> None:
    """Scenes at the end of a batch may have no masked cell."""
    method = make_method()
    batch = from_voxels(method, [(0, 0, 0), (20, 0, 0)], [(0, 0, 0)], kept=[True, False, True])
    _, cells, _ = method.split(batch)
    assert isinstance(cells, Topology)
    assert cells.batch_offsets.tolist() == [0, 1, 1]
