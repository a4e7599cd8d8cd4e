"""spconv 2.3, an optional package, as a backend of sparse convolution over our kernel maps."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_VERSION = "2.3"


@cache
def why_unavailable() -> str | None:
    """Reason why spconv cannot be called on CUDA tensors, or None. Imports it, which takes seconds."""
    try:
        import spconv
        import spconv.pytorch.ops
        from spconv.cppconstants import CPU_ONLY_BUILD
    except (ImportError, OSError) as error:
        return f"spconv cannot be imported ({error}); pip install spconv-cu126, or the wheel of your CUDA"
    if not spconv.__version__.startswith(f"{_VERSION}."):
        return f"spconv {spconv.__version__} is not {_VERSION}"
    return "this spconv was built without CUDA" if CPU_ONLY_BUILD else None


def refuse(feats: Tensor, *args: Any) -> str | None:
    """Reason why spconv would not keep what the operator promises, or None."""
    if why_unavailable() is not None:
        return None  # is said by the caller
    from spconv import constants

    if constants.SPCONV_ALLOW_TF32:
        return "SPCONV_ALLOW_TF32 is set, which multiplies with 10 bits of mantissa"
    return None


def pairs_of(neighbours: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A kernel map as lists of pairs, packed to the front.

    Args:
        neighbours: (K, M) int32 rows of inputs, -1 where there is none; rows that do not exist are left out.
        count: of inputs.

    Returns:
        pairs: (2, K, M + 1) int32 rows of inputs and of outputs; behind a list's end and in the last column anything.
        lengths: (K,) int32 of the lists.
    """
    offsets, outputs = neighbours.shape
    found = (neighbours >= 0) & (neighbours < count)
    place = torch.where(found, found.cumsum(1) - 1, outputs)
    pairs = neighbours.new_full((2, offsets, outputs + 1), -1)
    pairs[0].scatter_(1, place, neighbours)
    rows = torch.arange(outputs, dtype=torch.int32, device=neighbours.device)
    pairs[1].scatter_(1, place, rows.expand(offsets, -1))
    return pairs, found.sum(1, dtype=torch.int32)


def sparse_conv(feats: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> Tensor:
    """As ``geo3d::sparse_conv``. Waits for the device: spconv reads the lengths of the lists on the host."""
    import spconv.pytorch.ops
    from spconv.core import ConvAlgo

    outputs = neighbours.shape[1]
    pairs, lengths = pairs_of(neighbours, len(feats))
    if weight.numel() == 0 or not lengths.any():
        return feats.new_zeros(outputs, weight.shape[2])
    filters = weight.permute(2, 0, 1).contiguous()  # (Cout, K, Cin)
    with torch.cuda.device_of(feats):
        return spconv.pytorch.ops.indice_conv(
            feats.contiguous(), filters, pairs, lengths, outputs, algo=ConvAlgo.Native
        )
