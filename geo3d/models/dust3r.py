"""DUSt3R (Wang et al., CVPR 2024) and MASt3R (Leroy et al., ECCV 2024): two photographs -> the points of their pixels.

CroCo's encoder sees both views, two decoders look at each other's, and a head for each view puts out the 3D point of
every pixel in the camera frame of the first view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from geo3d.checkpoints.dust3r import read_dust3r
from geo3d.checkpoints.loading import Stored
from geo3d.errors import InputError
from geo3d.models.croco import CroCoFamily
from geo3d.models.croco_trunk import CroCoConfig, CroCoTrunk
from geo3d.models.dust3r_heads import PairPointmaps, Pointmap, build_head, upright_or_transposed
from geo3d.models.family import ReleasedFile
from geo3d.nn import token_positions
from geo3d.nn.colors import CENTRED
from geo3d.nn.dpt import LEVELS, WIDTH, draw_head
from geo3d.nn.patches import patchify
from geo3d.nn.pointmaps import ConfidenceMode, DepthMode


@dataclass(frozen=True)
class DUSt3RConfig(CroCoConfig):
    """Sizes of a DUSt3R or MASt3R network; the defaults are those of the published constructor."""

    rope_base: float | None = 100.0
    """Base of the rotary embedding; there is no other."""
    head: Literal["linear", "dpt", "catmlp+dpt"] = "linear"
    """How tokens become pixels; ``catmlp+dpt`` has descriptors."""
    depth_mode: DepthMode = "exp"
    """How the length of an output becomes a distance."""
    confidence: ConfidenceMode = field(default_factory=ConfidenceMode)
    """How an output becomes a confidence."""
    descriptors: int | None = None
    """Channels of the descriptors; None: none."""
    two_confidences: bool = False
    """Whether descriptors have a confidence of their own; else the points' is theirs."""
    descriptor_confidence: ConfidenceMode | None = None
    """How an output becomes the descriptors' own confidence; None: as that of the points."""
    freeze: Literal["none", "mask", "encoder"] = "none"
    """What is never trained: the mask token never is; ``encoder``: neither is the encoder."""
    head_levels: tuple[int, int, int, int] = LEVELS
    """Channels of the four levels of a DPT head."""
    head_width: int = WIDTH
    """Channels in which its levels are joined."""
    head_last: int = 128
    """Channels before its last layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rope_base is None:
            raise InputError("DUSt3R: has rotary position embeddings alone; give rope_base, or RoPE100 as pos_embed")
        if self.descriptors is not None and self.descriptors < 1:
            raise InputError(f"DUSt3R: descriptors must be positive, or none, got {self.descriptors}")
        if (self.head == "catmlp+dpt") != (self.descriptors is not None):
            raise InputError(
                f"DUSt3R: the head {self.head} has {'' if self.head == 'catmlp+dpt' else 'no '}descriptors, and "
                f"descriptors is {self.descriptors}"
            )
        if self.two_confidences and self.descriptors is None:
            raise InputError("DUSt3R: two_confidences goes with descriptors")
        if min(self.head_levels) < 1:
            raise InputError(f"DUSt3R: head_levels must be positive, got {self.head_levels}")


class _Read(NamedTuple):
    """One view as the network reads it, upright.

    Args:
        patches: (B, N, patch * patch * 3) in raster order.
        positions: (B, N, 2) of them.
        grid: rows and columns of the arrays.
        portrait: (B,) bool on the CPU: rows whose array is transposed; None: none is.
    """

    patches: Tensor
    positions: Tensor
    grid: tuple[int, int]
    portrait: Tensor | None


class EncodedView(NamedTuple):
    """Views as the encoder leaves them.

    Args:
        tokens: (B, N, C), after its norm.
        positions: (B, N, 2) of them.
        grid: rows and columns.
    """

    tokens: Tensor
    positions: Tensor
    grid: tuple[int, int]


class DUSt3R(CroCoTrunk):
    """The network of DUSt3R (section 3.2), with the published parameter names.

    Images are (B, 3, H, W) with colours in [-1, 1], as :meth:`prepare` makes them; the views may differ in size.

        >>> model = geo3d.create_model("dust3r", checkpoint="DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth")
        >>> first, second = (load_image(path).pixels for path in ("a.jpg", "b.jpg"))
        >>> pair = model(model.prepare(first), model.prepare(second))
        >>> pair.second.points      # (1, H, W, 3): the second view's points in the camera frame of the first

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "dust3r"
    task = "pointmaps"
    color_scale = CENTRED
    decoder_prefixes = ("mask_token", "decoder_embed.", "dec_", "downstream_head")
    head_prefixes = ("downstream_head",)

    def __init__(self, config: DUSt3RConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(config or self.default_config())
        # Of CroCo's files, and of theirs; nothing here reads it.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.config.decoder_dim), requires_grad=False)
        self.build_decoder()
        self.dec_blocks2 = self.decoder_blocks()
        self.downstream_head1 = build_head(self.config)
        self.downstream_head2 = build_head(self.config)
        if self.config.freeze == "encoder":
            for part in (self.patch_embed, self.enc_blocks, self.enc_norm):
                part.requires_grad_(False)
        self.reset_parameters(generator)

    @staticmethod
    def default_config() -> DUSt3RConfig:
        """What a network without a config is."""
        return DUSt3RConfig()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: as CroCo's, and those of the heads as :func:`geo3d.nn.dpt.draw_head` does."""
        super().reset_parameters(generator)
        for head in (self.downstream_head1, self.downstream_head2):
            draw_head(head if self.config.head == "linear" else head.dpt, generator)

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        first_shape: Tensor | None = None,
        second_shape: Tensor | None = None,
        symmetric: bool = False,
    ) -> PairPointmaps:
        """Points of both views.

        Args:
            first, second: (B, 3, H, W) and (B, 3, H', W') normalised images.
            first_shape, second_shape: (B, 2) upright height and width of each row, where a batch mixes orientations:
                arrays are landscape, and an image that is higher than wide lies in its row transposed. Its maps come
                out transposed as well. All are upright when not given.
            symmetric: rows 2k and 2k + 1 are one pair and the same pair swapped: each image is encoded once.

        Returns:
            A :class:`PairPointmaps`.

        Raises:
            InputError: sides that the patch does not divide, batches of two sizes, or shapes that do not fit arrays.
        """
        views = self._read(first, first_shape), self._read(second, second_shape)
        tokens = self.decode(*views, symmetric)
        return self._maps(tokens, [view.grid for view in views], [view.portrait for view in views])

    def encode_view(self, image: Tensor) -> EncodedView:
        """Upright images (B, 3, H, W) encoded once, for any number of pairs: :meth:`pair` joins them."""
        view = self._read(image, None)
        return EncodedView(self._tokens(view.patches, view.positions), view.positions, view.grid)

    def pair(self, first: EncodedView, second: EncodedView) -> PairPointmaps:
        """As :meth:`forward`, of views that are encoded."""
        tokens = self._cross((first.tokens, second.tokens), (first.positions, second.positions))
        return self._maps(tokens, [first.grid, second.grid], [None, None])

    def _maps(
        self,
        tokens: tuple[list[Tensor], list[Tensor]],
        grids: Sequence[tuple[int, int]],
        portraits: Sequence[Tensor | None],
    ) -> PairPointmaps:
        """What the heads make of the levels of both views."""
        heads = self.downstream_head1, self.downstream_head2
        maps = (
            upright_or_transposed(head, [levels[n] for n in head.levels], grid, portrait)
            for head, levels, grid, portrait in zip(heads, tokens, grids, portraits, strict=True)
        )
        return PairPointmaps(*maps)

    def levels(
        self,
        first: Tensor,
        second: Tensor,
        first_shape: Tensor | None = None,
        second_shape: Tensor | None = None,
        symmetric: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the heads choose from: tokens (B, N, C) of both views, the encoder's first, then those of each block of
        the view's decoder, the last one's normalised; arguments as of :meth:`forward`, tokens in upright order.
        """
        return self.decode(self._read(first, first_shape), self._read(second, second_shape), symmetric)

    def decode(self, first: _Read, second: _Read, symmetric: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`levels`, of views that are read."""
        if len(first.patches) != len(second.patches):
            raise InputError(f"DUSt3R: {len(first.patches)} first views and {len(second.patches)} second ones")
        if symmetric:
            encoded = self._encode_once(first, second)
        elif first.patches.shape == second.patches.shape:
            both = self._tokens(
                torch.cat([first.patches, second.patches]), torch.cat([first.positions, second.positions])
            )
            encoded = both.chunk(2)
        else:
            encoded = self._tokens(first.patches, first.positions), self._tokens(second.patches, second.positions)
        return self._cross(encoded, (first.positions, second.positions))

    def _cross(
        self, encoded: tuple[Tensor, Tensor], positions: tuple[Tensor, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Both decoders over encoder outputs of two views."""
        x, y = (
            self.placed(self.decoder_embed(tokens), place, (0, 0))  # rotary: no grid is asked for
            for tokens, place in zip(encoded, positions, strict=True)
        )
        seen = [encoded[0]], [encoded[1]]
        for block, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            # Both move at once: each sees what the other was before.
            x, y = (
                block(x, y, positions[0], positions[1]),
                block2(y, x, positions[1], positions[0]),
            )
            seen[0].append(x)
            seen[1].append(y)
        for levels in seen:
            levels[-1] = self.dec_norm(levels[-1])
        return seen

    def _tokens(self, patches: Tensor, positions: Tensor) -> Tensor:
        tokens, _ = self.run_encoder(patches, positions, positions, (0, 0), None)  # rotary: no grid is asked for
        return tokens

    def _encode_once(self, first: _Read, second: _Read) -> tuple[Tensor, Tensor]:
        """Encoder output of a batch whose every other pair is the one before it, swapped."""
        if first.patches.shape != second.patches.shape or len(first.patches) % 2:
            raise InputError("DUSt3R: a symmetric batch has an even number of pairs, and views of one size")
        patches, positions = (
            torch.cat([getattr(view, name)[::2] for view in (first, second)]) for name in ("patches", "positions")
        )
        one, other = self._tokens(patches, positions).chunk(2)
        return torch.stack([one, other], 1).flatten(0, 1), torch.stack([other, one], 1).flatten(0, 1)

    def _read(self, image: Tensor, shape: Tensor | None) -> _Read:
        self.require_images(image)
        grid, patch = self.token_grid(image), self.config.patch_size
        patches = patchify(image, patch)
        positions = token_positions(*grid, image.device).expand(len(image), -1, -1)
        portrait = None if shape is None else self._portraits(image, shape)
        if portrait is not None and portrait.any():
            which = portrait.to(image.device).view(-1, 1, 1)
            patches = torch.where(which, patchify(image.transpose(2, 3), patch), patches)
            positions = torch.where(which, token_positions(*grid[::-1], image.device), positions)
        return _Read(patches, positions, grid, portrait)

    def _portraits(self, image: Tensor, shape: Tensor) -> Tensor:
        """(B,) bool on the CPU: which rows hold an image that is higher than wide, transposed."""
        height, width = image.shape[2:]
        sizes = torch.as_tensor(shape).cpu()
        fits = sizes.shape == (len(image), 2) and height <= width
        if not fits or any(sorted(size) != [height, width] for size in sizes.tolist()):
            raise InputError(
                "DUSt3R: with shapes given, arrays are landscape and shapes (B, 2) the upright heights and widths, got "
                f"arrays of {height} x {width} and shapes {sizes.tolist()}"
            )
        return sizes[:, 0] > sizes[:, 1]


class MASt3R(DUSt3R):
    """The network of MASt3R (section 3): DUSt3R whose pixels also have descriptors to be matched by.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "mast3r"

    @staticmethod
    def default_config() -> DUSt3RConfig:
        """What a network without a config is: the released one."""
        return MAST3R_PRESETS["mast3r_vitl_512_catmlpdpt"]


_LARGE = DUSt3RConfig(
    encoder_dim=1024, encoder_depth=24, encoder_heads=16, decoder_dim=768, decoder_depth=12, decoder_heads=12
)
_LARGE_DPT = replace(_LARGE, image_size=(512, 512), head="dpt")
#: Trunk and decoder of `croco_tiny`, whose weights are a start.
_TINY = DUSt3RConfig((64, 64), 8, 96, 4, 4, 64, 4, 4, decoder_sincos=True)
_SMALL_HEAD = {"head_levels": (32, 48, 64, 96), "head_width": 48, "head_last": 32}

#: Named configurations of DUSt3R and of MASt3R.
PRESETS = {
    "dust3r_vitl_512_dpt": _LARGE_DPT,
    "dust3r_vitl_512_linear": replace(_LARGE, image_size=(512, 512)),
    "dust3r_vitl_224_linear": _LARGE,
    "dust3r_tiny": _TINY,
}
MAST3R_PRESETS = {
    "mast3r_vitl_512_catmlpdpt": replace(
        _LARGE_DPT,
        head="catmlp+dpt",
        descriptors=24,
        two_confidences=True,
        descriptor_confidence=ConfidenceMode("exp", 0.0),
    ),
    "mast3r_tiny": replace(
        _TINY,
        head="catmlp+dpt",
        descriptors=8,
        two_confidences=True,
        descriptor_confidence=ConfidenceMode("exp", 0.0),
        **_SMALL_HEAD,
    ),
}
_ADDRESS = "https://download.europe.naverlabs.com/ComputerVision"
_FILES = (
    ("DUSt3R_ViTLarge_BaseDecoder_224_linear.pth", "dust3r_vitl_224_linear"),
    ("DUSt3R_ViTLarge_BaseDecoder_512_linear.pth", "dust3r_vitl_512_linear"),
    ("DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth", "dust3r_vitl_512_dpt"),
)
_MAST3R_FILE = "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric.pth"
_OF_CROCO = tuple(f.name for f in fields(CroCoConfig))
#: Families whose one decoder is a start for both.
_ON_TRUNK = ("croco", "multiview", "croco_downstream")


def with_two_decoders(croco: Stored, family: str = "dust3r") -> Stored:
    """A network on CroCo's trunk as part of one of DUSt3R: its decoder becomes both; the heads are to be drawn.

    Training from CroCo v2 began so (section 3.3).
    """
    state = {name: value for name, value in croco.state.items() if not name.startswith(("prediction_head.", "head."))}
    first = "dec_blocks."
    second = {f"dec_blocks2.{name.removeprefix(first)}": v for name, v in state.items() if name.startswith(first)}
    if second and "mask_token" not in state:  # of downstream networks, which have none; nothing here reads it
        second["mask_token"] = torch.zeros(1, 1, len(state["decoder_embed.weight"]))
    config = croco.config and {name: value for name, value in croco.config.items() if name in _OF_CROCO}
    return Stored(state | second, family, config, croco.stated)


def with_descriptors(dust3r: Stored) -> Stored:
    """A network of DUSt3R's as part of one of MASt3R, whose training begins with it; the heads are to be drawn."""
    return replace(dust3r, family="mast3r", name=None)


FAMILY = CroCoFamily(
    name="dust3r",
    title="DUSt3R",
    network=DUSt3R,
    config=DUSt3RConfig,
    presets=PRESETS,
    read=read_dust3r,
    free=("image_size", "freeze"),
    of_decoder=("decoder_dim", "decoder_depth", "decoder_heads", "norm_memory"),
    of_head=tuple(f.name for f in fields(DUSt3RConfig) if f.name not in (*_OF_CROCO, "freeze")),
    wholes=dict.fromkeys(_ON_TRUNK, with_two_decoders),
    files=tuple(
        ReleasedFile(file, (model,), "pointmaps", address=f"{_ADDRESS}/DUSt3R/{file}") for file, model in _FILES
    ),
    licence="CC-BY-NC-SA-4.0",
    non_commercial=True,
    page="https://github.com/naver/dust3r",
)
MAST3R_FAMILY = replace(
    FAMILY,
    name="mast3r",
    title="MASt3R",
    network=MASt3R,
    presets=MAST3R_PRESETS,
    wholes=dict.fromkeys(_ON_TRUNK, partial(with_two_decoders, family="mast3r")) | {"dust3r": with_descriptors},
    files=(
        ReleasedFile(
            _MAST3R_FILE,
            ("mast3r_vitl_512_catmlpdpt",),
            "pointmaps and matches",
            address=f"{_ADDRESS}/MASt3R/{_MAST3R_FILE}",
        ),
    ),
    page="https://github.com/naver/mast3r",
)

__all__ = [
    "FAMILY",
    "MAST3R_FAMILY",
    "DUSt3R",
    "DUSt3RConfig",
    "EncodedView",
    "MASt3R",
    "PairPointmaps",
    "Pointmap",
]
