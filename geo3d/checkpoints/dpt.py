"""DPT heads in published files, which list some of their tensors twice."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from geo3d.errors import InputError


def without_doubles(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """A published state dict with each tensor of a DPT head once, under the names of :class:`geo3d.nn.dpt.DPTHead`.

    Published files list ``scratch.layer{n}_rn`` as ``scratch.layer_rn.{n - 1}`` too, and CroCo's
    ``act_postprocess.{n - 1}`` as ``act_{n}_postprocess``; either name alone will do.

    Args:
        state: names -> tensors.
        head: how the head's names begin, such as ``head.dpt.``.

    Raises:
        InputError: the two differ.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        own = _own_name(name, head) if name.startswith(head) else name
        if own in renamed and not (renamed[own].shape == value.shape and torch.equal(renamed[own], value)):
            raise InputError(f"{name} differs from {own}, though they are one tensor in this network")
        renamed[own] = value
    return renamed


def _own_name(name: str, head: str) -> str:
    parts = name.removeprefix(head).split(".")
    if parts[:2] == ["scratch", "layer_rn"] and len(parts) > 3 and parts[2].isdecimal():
        parts[1:3] = [f"layer{int(parts[2]) + 1}_rn"]
    doubled = parts[0].split("_")
    if len(doubled) == 3 and doubled[0] == "act" and doubled[1].isdecimal() and doubled[2] == "postprocess":
        parts[:1] = ["act_postprocess", str(int(doubled[1]) - 1)]
    return head + ".".join(parts)


__all__ = ["without_doubles"]
