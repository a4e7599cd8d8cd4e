"""SparK's files: bare encoders, whole pre-training networks, and training runs of the published code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.loading import Stored, as_state_dict, count_names
from geo3d.errors import InputError

#: Where the encoder's names begin in a whole network.
ENCODER_PREFIX = "sparse_encoder.sp_cnn."
#: Buffers of the published class that nothing reads; released files hold uninitialised memory there.
_DEAD = ("imn_m", "imn_s", "norm_black")


def read_spark(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors, or of their training code, holds: a bare encoder, or a whole network.

    A bare encoder (``timm_style`` and ``official_style`` releases) is of the family ``resnet`` or ``convnext``, a whole
    network (``spark_style``) of the family ``spark``; each as a bare state dict or under ``module`` in a training
    container. Kind and sizes are read off names and shapes.

    Raises:
        InputError: neither a ResNet nor a ConvNeXt.
    """
    state = {k: v for k, v in as_state_dict(content, path).items() if k not in _DEAD}
    if any(name.startswith(ENCODER_PREFIX) for name in state):
        return _whole(state, path)
    kind, config = encoder_from_state(state, path)
    return Stored(state, kind, config)


def encoder_of(whole: Stored) -> Stored:
    """The bare encoder of a whole network.

    Raises:
        InputError: its description does not tell of the encoder.
    """
    for name in ("encoder_kind", "encoder"):
        if name not in (whole.config or {}):
            raise InputError(f"its description of the model lacks {name}")
    state = {k.removeprefix(ENCODER_PREFIX): v for k, v in whole.state.items() if k.startswith(ENCODER_PREFIX)}
    return Stored(state, whole.config["encoder_kind"], whole.config["encoder"])


def whole_around(bare: Stored) -> Stored:
    """A bare encoder as part of a whole network, whose decoder is left to be drawn."""
    state = {ENCODER_PREFIX + name: value for name, value in bare.state.items()}
    norm = "bn" if bare.family == "resnet" else "ln"
    config = {"encoder_kind": bare.family, "encoder": bare.config, "densify_norm": norm}
    return Stored(state, "spark", config, bare.stated)


def _whole(state: dict[str, Tensor], path: str | Path) -> Stored:
    encoder = {k.removeprefix(ENCODER_PREFIX): v for k, v in state.items() if k.startswith(ENCODER_PREFIX)}
    kind, config = encoder_from_state(encoder, path)
    first = "dense_decoder.dec.0.up_sample.weight"
    if first not in state:
        raise InputError(f"{path}: not a whole SparK network: it has no {first}")
    norm = "bn" if "densify_norms.0.running_mean" in state else "ln" if "densify_norms.0.weight" in state else "none"
    whole = {"encoder_kind": kind, "encoder": config, "densify_norm": norm, "decoder_width": state[first].shape[0]}
    return Stored(state, "spark", whole)


def encoder_from_state(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, dict[str, Any]]:
    """Kind of an encoder and the fields of its config, from published names and shapes.

    Raises:
        InputError: the tensors that tell are missing.
    """
    if "conv1.weight" in state:
        depths = [count_names(state, f"layer{stage}.{{}}.conv3.weight") for stage in range(1, 5)]
        kind, config = "resnet", {"depths": tuple(depths), "width": state["conv1.weight"].shape[0]}
    elif "downsample_layers.0.0.weight" in state:
        depths = [count_names(state, f"stages.{stage}.{{}}.dwconv.weight") for stage in range(4)]
        channels = [state.get(f"stages.{stage}.0.dwconv.weight") for stage in range(4)]
        config = {"depths": tuple(depths), "channels": tuple(0 if c is None else c.shape[0] for c in channels)}
        kind = "convnext"
    else:
        raise InputError(
            f"{path}: neither a ResNet nor a ConvNeXt: it has no conv1.weight and no downsample_layers.0.0.weight"
        )
    if 0 in depths:
        raise InputError(f"{path}: not a whole {kind}: stage {depths.index(0) + 1} of 4 has no bottleneck or block")
    return kind, config
