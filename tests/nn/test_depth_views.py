"""Depth maps of clouds against their definition, point by point; look-up against resizing the whole map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.nn.depth_views import depth_grid, depth_views


def clouds(*sizes: int) -> tuple[Tensor, Tensor]:
    """Packed random clouds of several extents and places."""
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [
        torch.randn(n, 3, generator=generator) * torch.rand(3, generator=generator) * 2
        + torch.randn(3, generator=generator)
        for n in sizes
    ]
    return torch.cat(parts), torch.tensor([0, *sizes]).cumsum(0)


def published(xyz: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The definition (specification, 2.3), a pixel at a time: depth sums (3, size, size) and the pixels (3, N, 2)."""
    images, pixels = [], []
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        p = xyz[:, axes].float()
        low = p[:, :2].amin(0)
        cell = (p[:, :2].amax(0) - low).amax() / (size - 3)
        index = torch.zeros(len(p), 2) if cell == 0 else ((p[:, :2] - low) / cell).floor()
        reach = torch.arange(-2, 3.0)
        covered = index[:, None] + torch.cartesian_prod(reach, reach) + 1  # (N, 25, 2)
        middle = ((covered.amax((0, 1)) + covered.amin((0, 1))) / 2).floor()
        shift = size // 2 - middle - 1
        covered = covered + shift
        covered = covered + (covered < 0).float() - (covered > size - 1).float()
        assert covered.min() >= 0
        assert covered.max() <= size - 1
        image = torch.zeros(size, size, dtype=torch.float64)
        for point, depth in zip(covered.long(), p[:, 2].double()):
            for row, column in point.tolist():
                image[row, column] += depth
        images.append(image)
        pixels.append((index + 1 + shift).long())
    return torch.stack(images), torch.stack(pixels)


@pytest.mark.parametrize("size", [12, 32, 224])
def test_depth_maps_are_as_defined(size: int) -> None:
    points, offsets = clouds(40, 1, 7, 90)
    views = depth_views(points, offsets, size)
    for number, xyz in enumerate(points.tensor_split(offsets[1:-1])):
        image, pixels = published(xyz, size)
        # float32 sums of up to 90 points of at most 6: measured 2e-6.
        torch.testing.assert_close(views.depth[number::4].double(), image, rtol=0, atol=2e-5)
        rows = slice(int(offsets[number]), int(offsets[number + 1]))
        assert torch.equal(views.pixels(points, offsets)[:, rows], pixels)
    assert torch.equal(views.images, views.depth.sigmoid())
    assert views.colors().shape == (12, 3, size, size)


def test_a_batch_is_as_its_clouds_alone_and_the_same_again() -> None:
    points, offsets = clouds(300, 20, 500)
    together = depth_views(points, offsets, 64)
    assert torch.equal(together.images, depth_views(points, offsets, 64).images)
    grid = depth_grid(points, offsets, 64)
    assert torch.equal(grid.cell, together.cell)
    assert torch.equal(grid.shift, together.shift)
    for number, xyz in enumerate(points.tensor_split(offsets[1:-1])):
        alone = depth_views(xyz, torch.tensor([0, len(xyz)]), 64)
        assert torch.equal(alone.depth, together.depth[number::3])


DEGENERATE = {
    "one point": torch.tensor([[3.0, -2.0, 5.0]]),
    "equal points": torch.tensor([[0.5, 0.25, -4.0]]).repeat(50, 1),
    "line": torch.linspace(-1, 1, 30).unsqueeze(1) * torch.tensor([0.0, 0.0, 1.0]),
    "plane": torch.cartesian_prod(torch.linspace(0, 1, 9), torch.linspace(0, 1, 9), torch.tensor([2.0])),
    "tiny": torch.tensor([[0.0, 0.0, 0.0], [1e-42, 0.0, 0.0]]),
    "huge": torch.tensor([[-3e38, 0.0, 1.0], [3e38, 1e38, 1.0]]),
    "far from the origin": torch.tensor([[1e6, 1e6, 1e6], [1e6 + 1, 1e6, 1e6 + 0.5]]),
}


@pytest.mark.parametrize("xyz", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_clouds_give_finite_images(xyz: Tensor) -> None:
    offsets = torch.tensor([0, len(xyz)])
    views = depth_views(xyz, offsets, 32)
    assert views.images.isfinite().all()
    assert (views.images >= 0).all()
    assert (views.images <= 1).all()
    assert views.look_up(xyz, offsets, torch.ones(3, 2, 4, 4)).isfinite().all()


def test_a_point_alone_is_a_square_in_the_middle() -> None:
    views = depth_views(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 1]), 32)
    expected = torch.zeros(3, 32, 32)
    expected[:, 13:18, 13:18] = torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1)
    assert torch.equal(views.depth, expected)


@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 5), (1, 1), (64, 80)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_look_up_is_resizing_and_gathering(height: int, width: int, dtype: torch.dtype) -> None:
    points, offsets = clouds(60, 35)
    views = depth_views(points, offsets, 64)
    maps = torch.randn(6, 5, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    wide = maps if dtype == torch.float64 else maps.float()
    whole = F.interpolate(wide, (64, 64), mode="bicubic", align_corners=False)
    pixels = views.pixels(points, offsets)
    assert pixels.min() >= 1
    assert pixels.max() <= 62
    found = views.look_up(points, offsets, maps)
    assert found.dtype == wide.dtype
    for view in range(3):
        for cloud in range(2):
            rows = slice(int(offsets[cloud]), int(offsets[cloud + 1]))
            row, column = pixels[view, rows].unbind(-1)
            expected = whole[view * 2 + cloud][:, row, column].t()
            # 16 float32 products of values up to 4: measured 1.5e-6.
            torch.testing.assert_close(found[view, rows], expected, rtol=0, atol=8e-6)


def test_look_up_at_points_outside_takes_the_nearest_pixel() -> None:
    points, offsets = clouds(50)
    views = depth_views(points, offsets, 32)
    far = torch.tensor([[1e30, 1e30, 1e30], [-1e30, -1e30, -1e30]])
    pixels = views.pixels(far, torch.tensor([0, 2]))
    assert (pixels[:, 0] == 31).all()
    assert (pixels[:, 1] == 0).all()


WRONG = {
    "an odd size": ({"size": 33}, "even"),
    "a cloud without points": ({"offsets": torch.tensor([0, 4, 4, 9])}, "cloud 1 has no points"),
    "offsets that end elsewhere": ({"offsets": torch.tensor([0, 4, 8])}, "rise from 0 to 9"),
    "offsets of another type": ({"offsets": torch.tensor([0.0, 9.0])}, "int64"),
    "batches that are not packed": ({"points": torch.zeros(1, 9, 3)}, "pack the clouds"),
    "no numbers": ({"points": torch.full((9, 3), torch.nan)}, "row 0 of the points is not finite"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line(change: dict, message: str) -> None:
    right = {"points": torch.rand(9, 3), "offsets": torch.tensor([0, 9]), "size": 32}
    with pytest.raises(InputError, match=message) as error:
        depth_views(**(right | change))
    assert "\n" not in str(error.value)


def test_maps_of_other_views_are_refused() -> None:
    points, offsets = clouds(5, 6)
    views = depth_views(points, offsets, 32)
    with pytest.raises(InputError, match="three views of 2 clouds"):
        views.look_up(points, offsets, torch.zeros(3, 4, 2, 2))
    with pytest.raises(InputError, match="offsets are of 1 clouds"):
        views.look_up(points, torch.tensor([0, 11]), torch.zeros(6, 4, 2, 2))


@pytest.mark.cuda
def test_the_same_on_a_gpu_and_again() -> None:
    points, offsets = clouds(3000, 10)
    here = depth_views(points, offsets)
    there = depth_views(points.cuda(), offsets.cuda())
    assert torch.equal(there.shift.cpu(), here.shift)
    torch.testing.assert_close(there.images.cpu(), here.images, rtol=0, atol=1e-5)
    assert torch.equal(there.images, depth_views(points.cuda(), offsets.cuda()).images)
    maps = torch.randn(6, 7, 14, 14)
    torch.testing.assert_close(
        there.look_up(points.cuda(), offsets.cuda(), maps.cuda()).cpu(),
        here.look_up(points, offsets, maps), rtol=0, atol=8e-6,
    )  # fmt: skip
