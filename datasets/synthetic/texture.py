"""Procedural textures, and their packed mip levels for filtered look-ups at ray hits and mesh vertices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

Color = np.ndarray  # (3,) float, 0 to 255

_BANK_SIDE = 512
_FABRICS = ("weave", "stripes", "uneven stripes", "checks", "plaid", "dots", "diamonds", "cloudy")
_GLAZES = ("cloudy", "marble", "terrazzo", "dots", "uneven stripes", "brick", "diamonds")
_WALLS = ("plaster", "plaster", "cloudy", "uneven stripes", "diamonds", "brick", "weave", "marble")
_FLOORS = ("planks", "parquet", "tiles", "terrazzo", "carpet", "marble")
_BANK_SEED = 40  # the patterns are the same in every data set; colours, sizes and offsets are drawn per scene
_BANK_METRES = 2.0  # what a full-size pattern covers: 4 mm a texel, finer than a pixel of a room view


def _spectral_noise(rng: np.random.Generator, falloff: float, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Tileable noise (side, side) in [0, 1] whose amplitude falls as frequency ** -falloff; all octaves at once."""
    rows = np.fft.fftfreq(_BANK_SIDE)[:, None] * _BANK_SIDE * stretch[0]
    columns = np.fft.rfftfreq(_BANK_SIDE)[None] * _BANK_SIDE * stretch[1]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((_BANK_SIDE, _BANK_SIDE))) * frequency**-falloff
    noise = np.fft.irfft2(spectrum, (_BANK_SIDE, _BANK_SIDE))
    return np.clip(0.5 + 0.22 * (noise - noise.mean()) / noise.std(), 0, 1).astype(np.float32)


def _courses(rng: np.random.Generator, rows: int, columns: int, shift: float, joint: float) -> np.ndarray:
    """Bricks, tiles or planks: a tone in [0.35, 1] for each, 0 in the joints (``joint`` metres wide)."""
    y, x = np.mgrid[0:_BANK_SIDE, 0:_BANK_SIDE] / _BANK_SIDE
    row = np.floor(y * rows).astype(int)
    along = x * columns + shift * row
    column = np.floor(along).astype(int) % columns
    tone = rng.uniform(0.35, 1.0, (rows, columns))[row, column]
    gap_y = np.abs((y * rows + 0.5) % 1 - 0.5) / rows * _BANK_METRES
    gap_x = np.abs((along + 0.5) % 1 - 0.5) / columns * _BANK_METRES
    return np.where(np.minimum(gap_x, gap_y) < joint / 2, 0, tone).astype(np.float32)


def _cells(rng: np.random.Generator, across: int) -> np.ndarray:
    """Voronoi cells of a jittered grid, a tone in [0, 1] for each: terrazzo, or crazy paving."""
    seed = rng.uniform(0, 1, (across, across, 2))
    shade = rng.uniform(0, 1, (across, across)).astype(np.float32)
    y, x = np.mgrid[0:_BANK_SIDE, 0:_BANK_SIDE] / _BANK_SIDE * across
    row, column = y.astype(int), x.astype(int)
    nearest = np.full((_BANK_SIDE, _BANK_SIDE), np.inf)
    tone = np.zeros((_BANK_SIDE, _BANK_SIDE), np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            i, j = (row + dy) % across, (column + dx) % across
            distance = (row + dy + seed[i, j, 0] - y) ** 2 + (column + dx + seed[i, j, 1] - x) ** 2
            closer = distance < nearest
            tone[closer], nearest[closer] = shade[i, j][closer], distance[closer]
    return tone


@lru_cache(maxsize=1)
def pattern_bank() -> dict[str, np.ndarray]:
    """All tileable patterns: name -> (512, 512) float32 in [0, 1]."""
    rng = np.random.default_rng(_BANK_SEED)
    y, x = np.mgrid[0:_BANK_SIDE, 0:_BANK_SIDE].astype(np.float32) / _BANK_SIDE
    fine, cloudy = _spectral_noise(rng, 0.7), _spectral_noise(rng, 1.5)
    grain = _spectral_noise(rng, 1.1, (1.0, 14.0))
    planks, parquet = _courses(rng, 2, 16, 0.5, 0.006), _courses(rng, 16, 4, 0.37, 0.005)
    vein = 1 - np.abs(2 * _spectral_noise(rng, 1.4) - 1)
    stripe, band = np.sin(2 * np.pi * 16 * x) > 0, np.sin(2 * np.pi * 16 * y) > 0
    uneven = np.isin(np.floor(x * 32).astype(int) % 8, [0, 1, 4, 6])
    weave = 0.5 + 0.25 * np.sin(2 * np.pi * 128 * x) + 0.25 * np.sin(2 * np.pi * 128 * y)
    in_cell_x, in_cell_y = (x * 16 + 0.5 * (np.floor(y * 16) % 2)) % 1 - 0.5, (y * 16) % 1 - 0.5
    patterns = {
        "fine": fine,
        "cloudy": cloudy,
        "plaster": 0.5 * fine + 0.5 * cloudy,
        "wood": np.clip(0.75 * grain + 0.25 * cloudy.T, 0, 1),
        "planks": np.where(planks > 0, 0.45 * grain + 0.55 * planks, 0),
        "parquet": np.where(parquet > 0, 0.35 * grain.T + 0.65 * parquet, 0),
        "brick": _courses(rng, 24, 8, 0.5, 0.012) * (0.75 + 0.25 * fine),
        "tiles": _courses(rng, 8, 8, 0.0, 0.008) * (0.85 + 0.15 * cloudy),
        "small tiles": _courses(rng, 20, 20, 0.0, 0.008),
        "marble": vein**4,
        "terrazzo": _cells(rng, 26),
        "stripes": stripe,
        "uneven stripes": uneven,
        "checks": stripe != band,
        "plaid": 0.5 * stripe + 0.3 * uneven.T + 0.2 * weave,
        "dots": np.hypot(in_cell_x, in_cell_y) < 0.28,
        "diamonds": np.abs(in_cell_x) + np.abs(in_cell_y) < 0.4,
        "weave": 0.6 * weave + 0.4 * cloudy,
        "carpet": 0.6 * _spectral_noise(rng, 0.3) + 0.4 * cloudy,
    }
    return {name: pattern.astype(np.float32) for name, pattern in patterns.items()}


@dataclass(frozen=True)
class Texture:
    """One repeat of a surface's colours.

    Args:
        image: (H, W, 3) uint8, sides powers of two; row 0 is at v = 0, the lower edge.
        size: width and height in metres of one repeat.
        fitted: the image fills one surface, as a picture does, and is not to be moved along it.
        glow: least brightness in [0, 1]; lamps and windows shine whatever falls on them.
    """

    image: np.ndarray
    size: tuple[float, float]
    fitted: bool = False
    glow: float = 0.0


def tiled(pattern: str, low: Color, high: Color, scale: float, wear: float, rng: np.random.Generator) -> Texture:
    """A pattern of the bank between two colours.

    Args:
        pattern: name in :func:`pattern_bank`.
        low, high: colours of 0 and of 1.
        scale: metres that one repeat covers; under 1 m a smaller image is cut.
        wear: strength in [0, 1] of the noise laid over it, so that no surface is blank.
        rng: draws where the noise lies.
    """
    bank = pattern_bank()
    step = 2 if scale < 1 else 1
    value = bank[pattern][::step, ::step]
    shift = tuple(rng.integers(0, _BANK_SIDE, 2))
    noise = np.roll(bank["plaster"][::step, ::step], shift, (0, 1))
    shade = np.float32(1 - wear / 2) + np.float32(wear) * noise
    image = np.empty((*value.shape, 3), np.uint8)
    for channel in range(3):
        mixed = np.float32(low[channel]) + value * np.float32(high[channel] - low[channel])
        image[..., channel] = np.minimum(mixed * shade, 255)
    return Texture(image, (scale, scale))


def random_color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A colour of any hue; ranges in [0, 1]."""
    hue = rng.uniform(0, 6)
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return 255 * v * (1 - s + s * ramp)


def _random_polygon(rng: np.random.Generator, side: int) -> list[tuple[float, float]]:
    center, radius = rng.uniform(0.1, 0.9, 2) * side, rng.uniform(0.06, 0.28) * side
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    return [tuple(center + radius * np.array([np.cos(a), np.sin(a)])) for a in angles]


def _ink(color: Color) -> tuple[int, int, int]:
    return tuple(int(c) for c in np.clip(color, 0, 255))


def _draw_shapes(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """An abstract picture: polygons, discs, rings and lines in clear colours."""
    for _ in range(rng.integers(10, 20)):
        ink = _ink(random_color(rng, (0.3, 1), (0.15, 1)))
        kind = rng.integers(4)
        (x, y), r = rng.uniform(0, side, 2), rng.uniform(0.03, 0.2) * side
        if kind == 0:
            draw.polygon(_random_polygon(rng, side), fill=ink)
        elif kind == 1:
            draw.ellipse([x - r, y - r, x + r, y + r], fill=ink)
        elif kind == 2:
            draw.ellipse([x - r, y - r, x + r, y + r], outline=ink, width=max(2, side // 40))
        else:
            draw.line([(x, y), tuple(rng.uniform(0, side, 2))], fill=ink, width=int(rng.integers(2, side // 20)))


def _draw_landscape(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Sky, hills behind hills, a sun and trees."""
    x, y = rng.uniform(0.2, 0.8) * side, rng.uniform(0.1, 0.35) * side
    r = 0.07 * side
    draw.ellipse([x - r, y - r, x + r, y + r], fill=_ink(np.array([255, 235, 170])))
    across = np.arange(0, side + 1, side // 32)
    for layer in range(4):
        height = (0.4 + 0.15 * layer + 0.05 * np.cumsum(rng.normal(0, 0.4, len(across)))) * side
        hill = np.array([70, 110, 70]) * rng.uniform(0.5, 1.4, 3)
        draw.polygon([(0, side), *zip(across.tolist(), height.tolist()), (side, side)], fill=_ink(hill))
    for _ in range(rng.integers(3, 9)):
        (x, y), r = rng.uniform([0, 0.5], [1, 0.9]) * side, rng.uniform(0.03, 0.09) * side
        draw.line([(x, y), (x, y + 2.5 * r)], fill=(80, 55, 35), width=max(2, side // 60))
        draw.ellipse([x - r, y - 1.3 * r, x + r, y + r], fill=_ink(np.array([50, 120, 50]) * rng.uniform(0.5, 1.3, 3)))


def _draw_page(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Lines of text-like bars and a block picture: a poster, a notice or a screen."""
    ink = _ink(random_color(rng, (0, 1), (0, 0.35)))
    y, line = 0.06 * side, int(rng.integers(side // 28, side // 14))
    left, right = sorted(rng.uniform(0.08, 0.92, 2) * side)
    top, bottom = 0.45 * side, rng.uniform(0.6, 0.95) * side
    while y < side - 2 * line:
        x = 0.06 * side
        while x < 0.92 * side:
            width = rng.uniform(0.03, 0.16) * side
            if not (y > top - line and y < bottom and x + width > left and x < right):
                draw.rectangle([x, y, min(x + width, 0.94 * side), y + 0.55 * line], fill=ink)
            x += width + 0.025 * side
        y += line
    draw.rectangle([left, top, right, bottom], fill=_ink(random_color(rng, (0.4, 1), (0.4, 1))))
    draw.polygon([tuple(p) for p in rng.uniform([left, top], [right, bottom], (3, 2))], fill=ink)


_PICTURES = {"shapes": _draw_shapes, "landscape": _draw_landscape, "page": _draw_page}


def picture(kind: str, size: tuple[float, float], rng: np.random.Generator, glow: float = 0.0) -> Texture:
    """A picture that fills a surface of ``size`` (metres) once: ``shapes``, ``landscape`` or ``page``."""
    side = 256
    ground = random_color(rng, (0.05, 0.4), (0.75, 1)) if kind != "landscape" else np.array([150, 190, 235.0])
    image = Image.new("RGB", (side, side), _ink(ground))
    _PICTURES[kind](ImageDraw.Draw(image), side, rng)
    paper = np.asarray(image)[::-1] * (0.94 + 0.06 * pattern_bank()["fine"][::2, ::2, None])
    return Texture(paper.astype(np.uint8), size, fitted=True, glow=glow)


@dataclass
class Palette:
    """The textures of one scene, drawn as builders ask for them; a scene has few materials of each family.

    Args:
        rng: draws colours and patterns.
        scale: metres of one repeat of the finest pattern relative to a room's; under 1 for small objects seen close.
    """

    rng: np.random.Generator
    scale: float = 1.0
    textures: list[Texture] = field(default_factory=list)
    families: dict[tuple[str, float], list[int]] = field(default_factory=dict)

    def add(self, texture: Texture) -> int:
        """Keep a texture; returns the number by which patches name it."""
        self.textures.append(texture)
        return len(self.textures) - 1

    def _one_of(self, family: str, most: int, make: Callable[[], int]) -> int:
        """A new material of a family, or one that the scene has; the more it has, the rarer a new one."""
        known = self.families.setdefault((family, self.scale), [])
        if self.rng.random() * most < len(known):
            return int(self.rng.choice(known))
        known.append(make())
        return known[-1]

    def tiled(self, pattern: str, low: Color, high: Color, metres: float = 1.0, wear: float = 0.3) -> int:
        """A pattern between two colours, ``metres`` a repeat."""
        return self.add(tiled(pattern, low, high, metres * self.scale, wear, self.rng))

    def picture(self, size: tuple[float, float], kind: str | None = None, glow: float = 0.0) -> int:
        """A picture of ``size`` metres; of a random kind when none is given."""
        kind = kind or str(self.rng.choice(list(_PICTURES)))
        return self.add(picture(kind, size, self.rng, glow))

    def plain(self, color: Color, wear: float = 0.35) -> int:
        """One colour with fine wear on it: paint, plastic, metal."""
        return self.tiled("plaster", 0.9 * color, np.minimum(1.08 * color, 255), 0.9, wear)

    def paint(self) -> int:
        """Paint of a random clear colour."""
        return self._one_of("paint", 12, lambda: self.plain(random_color(self.rng, (0.2, 0.9), (0.35, 0.95))))

    def white(self) -> int:
        """Ceramic, enamel, white paint."""
        return self._one_of("white", 3, self._new_white)

    def _new_white(self) -> int:
        return self.plain(self.rng.uniform(215, 240) * np.array([1, 1, self.rng.uniform(0.93, 1)]), 0.12)

    def shade(self) -> int:
        """A lamp's shade, lit from within."""
        return self._one_of("shade", 2, self._new_shade)

    def _new_shade(self) -> int:
        tone = self.rng.uniform([235, 215, 170], [250, 240, 220])
        return self.add(replace(tiled("weave", 0.93 * tone, tone, 0.5 * self.scale, 0.1, self.rng), glow=1.0))

    def metal(self) -> int:
        """Grey to black."""
        return self._one_of("metal", 4, lambda: self.plain(np.full(3, self.rng.uniform(50, 170)), 0.25))

    def wood(self) -> int:
        """Wood from birch to walnut, the grain along v."""
        return self._one_of("wood", 5, self._new_wood)

    def _new_wood(self) -> int:
        tone = np.array([190, 140, 90]) * self.rng.uniform(0.5, 1.25) * self.rng.uniform(0.92, 1.08, 3)
        return self.tiled("wood", 0.6 * tone, np.minimum(1.15 * tone, 250), 0.9, 0.15)

    def fabric(self) -> int:
        """Upholstery or bedding: plain weave, stripes, checks, plaid, dots or diamonds."""
        return self._one_of("fabric", 10, lambda: self._two_tone(_FABRICS, 0.35))

    def glaze(self) -> int:
        """Pottery, or a printed toy: speckles, veins, dots and stripes."""
        return self._one_of("glaze", 12, lambda: self._two_tone(_GLAZES, 0.5))

    def _two_tone(self, patterns: tuple[str, ...], wear: float) -> int:
        pattern = str(self.rng.choice(patterns))
        first = random_color(self.rng, (0.2, 0.9), (0.3, 0.9))
        near = self.rng.random() < 0.5
        second = first * self.rng.uniform(0.55, 0.8) if near else random_color(self.rng, (0.05, 0.5), (0.6, 1))
        return self.tiled(pattern, first, second, float(self.rng.uniform(0.5, 1.0)), wear)

    def wall(self) -> int:
        """Plaster, wallpaper, brick or panelling, light enough to light the room."""
        tone = random_color(self.rng, (0.03, 0.3), (0.72, 0.92))
        pattern = str(self.rng.choice(_WALLS))
        contrast = {"brick": 0.6, "plaster": 0.78, "cloudy": 0.8}.get(pattern, 0.86)
        return self.tiled(pattern, contrast * tone, np.minimum(1.05 * tone, 250), _BANK_METRES, 0.25)

    def floor(self) -> int:
        """Planks, parquet, tiles, terrazzo, marble or carpet."""
        pattern = str(self.rng.choice(_FLOORS))
        if pattern in ("planks", "parquet"):
            tone = np.array([185, 140, 95]) * self.rng.uniform(0.6, 1.15) * self.rng.uniform(0.93, 1.07, 3)
        else:
            tone = random_color(self.rng, (0.05, 0.45), (0.45, 0.85))
        return self.tiled(pattern, 0.55 * tone, np.minimum(1.1 * tone, 250), _BANK_METRES, 0.25)


@dataclass
class MixedPalette(Palette):
    """Any pattern in any two colours and any size on every surface, whatever it is: no place is without texture.

    Matching of images is learnt from contrast, of which rooms as they are furnished have little on walls and fronts.
    """

    def tiled(self, pattern: str, low: Color, high: Color, metres: float = 1.0, wear: float = 0.3) -> int:
        """A texture drawn at random; what is asked for does not count."""
        drawn = str(self.rng.choice(list(pattern_bank())))
        first, second = (random_color(self.rng, (0.05, 0.9), span) for span in ((0.1, 0.6), (0.4, 1.0)))
        size = float(self.rng.uniform(0.5, 2.0)) * self.scale
        return self.add(tiled(drawn, first, second, size, float(self.rng.uniform(0.2, 0.7)), self.rng))


def _mip_levels(image: np.ndarray) -> list[np.ndarray]:
    """The image and its halvings down to a side of one, (h, w, 3) float32."""
    levels = [image.astype(np.float32)]
    while min(levels[-1].shape[:2]) > 1:
        last = levels[-1]
        levels.append(0.25 * (last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]))
    return levels


class Atlas:
    """All textures of a scene with their mip levels, in one array of packed texels."""

    def __init__(self, textures: list[Texture]) -> None:
        levels = [_mip_levels(t.image) for t in textures]
        self._last_level = np.array([len(x) - 1 for x in levels], np.int32)
        self._width = np.array([t.image.shape[1] for t in textures], np.int32)
        self._height = np.array([t.image.shape[0] for t in textures], np.int32)
        self._size = np.array([t.size for t in textures], np.float32)
        self._texel = (self._size / np.stack([self._width, self._height], 1)).max(1).astype(np.float32)
        self._start = np.zeros((len(textures), self._last_level.max() + 1), np.int32)
        packed, offset = [], 0
        for i, pyramid in enumerate(levels):
            for j, level in enumerate(pyramid):
                self._start[i, j] = offset
                texels = np.zeros((level.shape[0] * level.shape[1], 4), np.uint8)
                texels[:, :3] = (level + 0.5).reshape(-1, 3)
                packed.append(texels)
                offset += len(texels)
        self._packed = np.concatenate(packed).view(np.uint32)[:, 0]

    def lookup(self, texture: np.ndarray, uv: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Filtered colours of surface points, bilinear in the nearest mip level.

        Args:
            texture: (N,) texture numbers.
            uv: (N, 2) metres on the surface.
            footprint: (N,) metres that the sample should average over.

        Returns:
            (N, 3) float32, 0 to 255.
        """
        size, texel = self._size.take(texture, 0), self._texel.take(texture)
        level = np.log2(np.maximum(footprint / texel, np.float32(1))) + np.float32(0.3)
        level = np.minimum(level.astype(np.int32), self._last_level.take(texture))
        width, height = self._width.take(texture) >> level, self._height.take(texture) >> level
        x, y = uv[:, 0] / size[:, 0] * width - np.float32(0.5), uv[:, 1] / size[:, 1] * height - np.float32(0.5)
        x0, y0 = np.floor(x), np.floor(y)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        left, low = x0.astype(np.int32), y0.astype(np.int32)
        right, high = (left + 1) & (width - 1), (low + 1) & (height - 1)
        left, low = left & (width - 1), low & (height - 1)
        start = self._start.take(texture * self._start.shape[1] + level)
        low, high = start + low * width, start + high * width
        lower = self._texels_at(low + left)
        lower += fx * (self._texels_at(low + right) - lower)
        upper = self._texels_at(high + left)
        upper += fx * (self._texels_at(high + right) - upper)
        return lower + fy * (upper - lower)

    def _texels_at(self, index: np.ndarray) -> np.ndarray:
        """(N, 3) float32."""
        return self._packed.take(index).view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)
