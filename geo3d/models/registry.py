"""The models by name, and the one door through which they are made."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geo3d.checkpoints.hub import resolve
from geo3d.checkpoints.loading import WeightFile, read_weight_file
from geo3d.checkpoints.shipped import ShippedWeights, shipped_info, shipped_names
from geo3d.errors import InputError, did_you_mean
from geo3d.models.encoder import Encoder, Kind, StageInfo
from geo3d.models.family import Family, Fresh, ReleasedFile

_FAMILIES: dict[str, Family] = {}
#: name of a model -> its family
_MODELS: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make the models of a family known to :func:`create_model`: its presets, and the family's own name.

    Raises:
        ValueError: a name that is taken, or a network that calls its family otherwise.
    """
    if family.network.family != family.name:
        raise ValueError(f"the network of the family {family.name!r} calls it {family.network.family!r}")
    names = list(dict.fromkeys([*family.presets, family.name]))
    taken = [name for name in names if name in _MODELS]
    if taken:
        raise ValueError(f"model {', '.join(map(repr, taken))} is registered twice")
    _FAMILIES[family.name] = family
    _MODELS.update(dict.fromkeys(names, family))
    return family


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` takes, sorted; ``pattern`` is a shell wildcard."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def family_of(name: str) -> Family:
    """The family that declares a model.

    Raises:
        InputError: none does.
    """
    if name not in _MODELS:
        known = list_models()
        raise InputError(f"unknown model {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    return _MODELS[name]


def create_model(
    name: str | None = None,
    checkpoint: str | Path | None = None,
    *,
    generator: torch.Generator | None = None,
    fresh_decoder: bool = False,
    fresh_head: bool = False,
    **options: Any,
) -> Encoder:
    """Make a model, with fresh weights or those of a file.

    Args:
        name: one of :func:`list_models`. Not needed for a file that geo3d wrote, which says what it holds.
        checkpoint: the authors' file (``.pth``) in its own layout, or one of geo3d's: what ``save_model`` wrote, or a
            checkpoint or run folder of the trainer, whose newest weights are taken (name the ``ema.safetensors`` in it
            for their moving average). ``shipped``: the weights of this model that come with geo3d.
            ``hf://owner/repository/file[@revision]``: a file of the Hugging Face Hub, which is fetched into its cache.
            Nothing is ever unpickled unsafely.
        generator: draws fresh weights; torch's global one when not given.
        fresh_decoder: take the encoder's weights alone from the file and draw those of decoder and heads.
        fresh_head: take encoder and decoder from the file and draw the head of the task alone, such as that of stereo
            on a pre-training file of CroCo's.
        options: fields of the family's config, such as ``image_size=(256, 320)``. Those of a file need not be repeated.

    Returns:
        The model in evaluation mode, on the CPU, in float32: an :class:`~geo3d.models.Encoder`, which says what it
        reads (``kind``), what its stages are (``feature_info``), makes its input of images or points (``prepare``) and
        hands out ``features``.

    Raises:
        InputError: unknown name or option, or an option's value of the wrong type; a file that is damaged, of another
            model than named, or whose tensors are missing, unexpected or mis-shaped: the message lists them.

    Warns:
        NonCommercialWeights: the file is in the layout of authors who license their weights for non-commercial use.

    Example:
        >>> model = create_model("croco_v2_base_small", checkpoint="CroCo_V2_ViTBase_SmallDecoder.pth")
        >>> tokens = model.encode(images)   # (B, N, 768)
        >>> encoder = create_model("sparse_resnet_tiny", checkpoint="shipped")
    """
    if checkpoint is None:
        if name is None:
            raise InputError("create_model needs a name, or a checkpoint that says what it holds")
        for name_of_it, asked in (("fresh_decoder", fresh_decoder), ("fresh_head", fresh_head)):
            if asked:
                raise InputError(f"{name_of_it} goes with a checkpoint, which gives the encoder's weights")
        return family_of(name).build(name, options, generator).eval()
    family = None if name is None else family_of(name)
    path = resolve(checkpoint, name)
    file = read_weight_file(path)
    if family is None:
        family = _family_in(file, path)
        name = family.name
    fresh: Fresh = "decoder" if fresh_decoder else "head" if fresh_head else "nothing"
    return family.load(name, file, path, options, fresh, generator, _FAMILIES).eval()


def first_model(names: Sequence[str], file: WeightFile, path: Path, **options: Any) -> Encoder:
    """The model in a file that is read already: what it says itself that it holds, or the first that it is of.

    Args:
        names: models that are tried in turn where the file does not say what it holds.
        file: what was read; the model's weights share its memory.
        path: of the file, for messages.
        options: as :func:`create_model` takes them.

    Raises:
        InputError: it is of none of these; says why not of each.

    Warns:
        NonCommercialWeights: as :func:`create_model`.
    """
    if file.card:
        family = _family_in(file, path)
        return family.load(family.name, file, path, options, families=_FAMILIES).eval()
    reasons = []
    for name in names:
        try:
            return family_of(name).load(name, file, path, options, families=_FAMILIES).eval()
        except InputError as error:
            reasons.append(f"as {name}: {error}")
    raise InputError("; ".join(reasons))


def _family_in(file: WeightFile, path: Path) -> Family:
    """The family whose model a file says that it holds."""
    held = file.card.get("family")
    if held is None:
        raise InputError(
            f"{path}: does not say which model it holds; name it, such as create_model('croco', checkpoint=...)"
        )
    if held not in _FAMILIES:
        raise InputError(
            f"{path}: holds a model of the family {held!r}, which is not known here; import the package that registers "
            f"it, known are {', '.join(sorted(_FAMILIES))}{did_you_mean(held, _FAMILIES)}"
        )
    return _FAMILIES[held]


def create_encoder(name: str, *, generator: torch.Generator | None = None, **options: Any) -> Encoder:
    """Make a model without its decoder, where the family can leave it out, with fresh weights.

    Args:
        name, generator, options: as :func:`create_model` takes them.

    Raises:
        InputError: unknown name or option.
    """
    return create_model(name, generator=generator, **(dict(family_of(name).bare) | options))


def encoder_of(model: Encoder) -> Encoder:
    """A model's encoder alone, with its weights, where the family can leave decoder and heads out.

    Args:
        model: one of a declared family; it is left as it is, and shares no memory with the result.

    Returns:
        The encoder, in evaluation mode; a copy of the model where its family is all encoder.

    Raises:
        InputError: the family is not known here.
    """
    if model.family not in _FAMILIES:
        raise InputError(f"encoder_of: the family {model.family!r} is not known here; register it first")
    family = _FAMILIES[model.family]
    if not family.bare:
        return copy.deepcopy(model).eval()
    usual = family.config()
    bare = {name: getattr(usual, name) for name in family.of_decoder} | dict(family.bare)
    alone = family.network(family.configure(model.config, bare))
    state = model.state_dict()
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    alone.name, alone.licence = model.name, model.licence
    return alone.eval()


def model_options(name: str) -> dict[str, Any]:
    """Options that a model takes, by name: the types of their values."""
    return family_of(name).options()


@dataclass(frozen=True)
class ModelInfo:
    """What there is to know of a model before it is made; as text, lines for people.

    Args:
        name: of the model.
        family: of the literature that it belongs to.
        network: name of the declared family, whose options it takes.
        kind: what it reads.
        parameters: how many weights it has, decoder and heads among them.
        stages: of the encoder, with channels and strides.
        files: that the authors released and that fit it.
        licence: of these, as an SPDX identifier; empty where there are none, or it is not known.
        non_commercial: whether that is for non-commercial use alone.
        page: address of the page of their authors that says where they are; empty where there are none.
        shipped: weights of it that come with geo3d.
    """

    name: str
    family: str
    network: str
    kind: Kind
    parameters: int
    stages: tuple[StageInfo, ...]
    files: tuple[ReleasedFile, ...]
    licence: str
    non_commercial: bool
    page: str = ""
    shipped: ShippedWeights | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stages."""
        return tuple(stage.stride for stage in self.stages)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the stages."""
        return tuple(stage.channels for stage in self.stages)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.network}, family {self.family}, reads {self.kind}, {self.parameters:,} parameters",
            f"stages: {_runs(self.stages)}",
        ]
        lines += [f"released: {file}" for file in self.files]
        if self.files:
            licence = self.licence or "not known; ask their authors"
            lines.append(f"licence of these: {licence}{', non-commercial use alone' * self.non_commercial}")
            if self.page:
                lines.append(f"where they are: {self.page}; nothing is fetched unasked")
        if self.shipped is not None:
            lines.append(f"comes with geo3d: {self.shipped}; checkpoint='shipped'")
        return "\n".join(lines)


def _runs(stages: tuple[StageInfo, ...]) -> str:
    """Stages in few words, equal ones in a row together."""
    runs: list[list[StageInfo]] = []
    for stage in stages:
        if runs and (runs[-1][0].channels, runs[-1][0].stride) == (stage.channels, stage.stride):
            runs[-1].append(stage)
        else:
            runs.append([stage])
    names = ["" if len(run) == 1 else f" to {run[-1].name}" for run in runs]
    return ", ".join(
        f"{run[0].name}{last} ({run[0].channels} channels, stride {run[0].stride})" for run, last in zip(runs, names)
    )


def model_info(name: str) -> ModelInfo:
    """What a model is: family, kind of input, size, stages, the authors' files that fit it and their licence.

    Args:
        name: one of :func:`list_models`.

    Raises:
        InputError: unknown name.
    """
    family = family_of(name)
    with torch.device("meta"):  # no weights are drawn
        model = family.build(name, {})
    files = tuple(file for file in family.files if name in file.models or name == family.name)
    return ModelInfo(
        name=name,
        family=family.published or family.name,
        network=family.name,
        kind=family.kind,
        parameters=sum(p.numel() for p in model.parameters()),
        stages=tuple(model.feature_info),
        files=files,
        licence=family.licence if files else "",
        non_commercial=family.non_commercial and bool(files),
        page=family.page if files else "",
        shipped=shipped_info(name) if name in shipped_names() else None,
    )
