"""SparK's files: bare encoders, whole pre-training networks, training runs of the published code, and geo3d's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.loading import as_state_dict, own_state, read_weight_file
from geo3d.errors import InputError

#: Where the encoder's names begin in a whole network.
ENCODER_PREFIX = "sparse_encoder.sp_cnn."
_WRAPPERS = ("module", "state_dict", "model")
#: Buffers of the published class that nothing reads; released files hold uninitialised memory there.
_DEAD = ("imn_m", "imn_s", "norm_black")
_PUBLISHED_CONFIG = "config"


@dataclass
class SparKFile:
    """Weights of a file and the network that they are of.

    Args:
        state: published names -> tensors.
        kind: ``spark`` (encoder and decoder), ``resnet`` or ``convnext``.
        config: fields of the config of ``kind``.
    """

    state: dict[str, Tensor]
    kind: str
    config: dict[str, Any]

    def encoder(self) -> SparKFile:
        """The encoder alone."""
        if self.kind != "spark":
            return self
        state = {k.removeprefix(ENCODER_PREFIX): v for k, v in self.state.items() if k.startswith(ENCODER_PREFIX)}
        return SparKFile(state, self.config["encoder_kind"], self.config["encoder"])


def read_spark_checkpoint(path: str | Path) -> SparKFile:
    """Read a SparK file in any of its layouts.

    A bare encoder (``timm_style`` and ``official_style`` releases) or a whole network (``spark_style``), as a bare
    state dict or under ``module`` in a training container; or a checkpoint of geo3d's trainer. Kind and sizes are read
    off names and shapes.

    Raises:
        InputError: damaged, unsafe, or neither a ResNet nor a ConvNeXt.
    """
    file = read_weight_file(path)
    if file.card:
        return SparKFile(own_state(file, "spark", path), file.card["kind"], file.card["config"])
    content = file.content
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping) and not isinstance(content.get(_PUBLISHED_CONFIG, None), Tensor):
        content = {name: value for name, value in content.items() if name != _PUBLISHED_CONFIG}
    state = {k: v for k, v in as_state_dict(content, path).items() if k not in _DEAD}
    if not any(name.startswith(ENCODER_PREFIX) for name in state):
        return SparKFile(state, *encoder_from_state(state, path))
    return _whole(state, path)


def _whole(state: dict[str, Tensor], path: str | Path) -> SparKFile:
    encoder = {k.removeprefix(ENCODER_PREFIX): v for k, v in state.items() if k.startswith(ENCODER_PREFIX)}
    kind, config = encoder_from_state(encoder, path)
    first = "dense_decoder.dec.0.up_sample.weight"
    if first not in state:
        raise InputError(f"{path}: not a whole SparK network: it has no {first}")
    norm = "bn" if "densify_norms.0.running_mean" in state else "ln" if "densify_norms.0.weight" in state else "none"
    whole = {"encoder_kind": kind, "encoder": config, "densify_norm": norm, "decoder_width": state[first].shape[0]}
    return SparKFile(state, "spark", whole)


def encoder_from_state(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, dict[str, Any]]:
    """Kind of an encoder and the fields of its config, from published names and shapes.

    Raises:
        InputError: the tensors that tell are missing.
    """
    if "conv1.weight" in state:
        depths = [_count(state, f"layer{stage}.{{}}.conv3.weight") for stage in range(1, 5)]
        kind, config = "resnet", {"depths": tuple(depths), "width": state["conv1.weight"].shape[0]}
    elif "downsample_layers.0.0.weight" in state:
        depths = [_count(state, f"stages.{stage}.{{}}.dwconv.weight") for stage in range(4)]
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


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the names ``pattern`` there are, counted from 0 without a gap."""
    number = 0
    while pattern.format(number) in state:
        number += 1
    return number
