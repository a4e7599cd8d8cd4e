"""Encoders written as programs that run without geo3d's models: `torch.export`, AOTInductor, ONNX."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch.export.graph_signature import InputKind

import geo3d
from geo3d.errors import InputError, require_extra
from geo3d.inference.programs import EncoderProgram, Normalise, program_of
from geo3d.models.encoder import Encoder
from geo3d.ops.rope_2d import rotated
from geo3d.writing import prepare_place, replacing, writing

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["program", "aoti", "onnx"]

#: Under this name the card lies in every file: an extra file of a program, an entry of metadata of the others.
CARD = "geo3d.json"
_SUFFIXES = {"program": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
_OPSET = 20
#: Guards that keep a size from being 1, which torch notes down when it chooses the strides of an intermediate result.
#: They change no figure: every program is compared with its encoder at sizes of 1 before it is handed out.
_NOT_ONE = re.compile(r"(!= 1|> 1|>= 2)$")
#: Largest difference to the encoder's own figures, over their largest value, that may be rounding.
_TOLERANCE = 1e-3


def export_encoder(
    model: Encoder,
    path: Path | str,
    to: Format = "program",
    *,
    layers: Sequence[int | str] | None = None,
    normalise: Normalise = "no",
    points: bool = False,
    voxel_size: float | None = None,
) -> dict[str, Any]:
    """Write an encoder as a program of tensors, with dynamic sizes.

    Args:
        model: the encoder, on the device that the program is to run on.
        path: file to write; its name ends in ``.pt2``, for ONNX in ``.onnx``.
        to: ``program``: what ``torch.export.load`` reads, in a process that has imported torch and ``geo3d.ops``;
            ``aoti``: compiled by AOTInductor for this processor; ``onnx``: encoders of images alone.
        layers: stages to return, as :meth:`Encoder.features` takes them; all when not given.
        normalise: what the program does itself. ``no``: it is handed what ``prepare`` makes. Of images, ``float`` and
            ``uint8``: (B, H, W, 3) of any sides, in [0, 1] or bytes, are normalised and filled up inside. Of voxels,
            ``uint8``: colours are bytes. Of points, ``float``: clouds of any unit are moved and scaled inside. Of
            grids, ``float`` and ``uint8``: any sides are filled up inside.
        points: also return the features of the stages at every point; of voxels alone.
        voxel_size: edge of the voxels, metres, of voxels alone; as in training when not given.

    Returns:
        The card that the file carries: model, inputs, outputs, licence.

    Raises:
        InputError: a format, a stage or an option that does not fit the encoder; a file name with another ending; an
            encoder that AOTInductor cannot compile; a place that cannot be written.
        MissingExtra: ONNX without its packages.
    """
    path = Path(path)
    if to not in get_args(Format):
        raise InputError(f"export: to must be one of {', '.join(get_args(Format))}, got {to!r}")
    if path.suffix != _SUFFIXES[to]:
        raise InputError(
            f"{path}: the name of a file of {to} ends in {_SUFFIXES[to]}; name it {path.stem}{_SUFFIXES[to]}"
        )
    if to == "onnx":
        if model.kind != "image":
            raise InputError(
                f"export: ONNX knows no operators for an encoder of {model.kind}; encoders of images alone can be "
                "exported so, take --to program for this one"
            )
        for package in ("onnx", "onnxscript"):
            require_extra(package, "onnx", "export to ONNX")
    traced = program_of(model, layers=layers, normalise=normalise, points=points, voxel_size=voxel_size)
    prepare_place(path)
    program, card = _traced(traced), card_of(traced)
    if to == "program":
        with replacing(path) as place, writing(path), place.open("wb") as file:
            torch.export.save(program, file, extra_files={CARD: json.dumps(card, indent=1)})
    elif to == "aoti":
        _compile(program, path, card)
    else:
        _write_onnx(program, traced, path, card)
    return card


def export_program(
    model: Encoder,
    *,
    layers: Sequence[int | str] | None = None,
    normalise: Normalise = "no",
    points: bool = False,
    voxel_size: float | None = None,
) -> ExportedProgram:
    """The program itself, for tools of one's own; arguments as :func:`export_encoder` takes them.

    Raises:
        InputError: as :func:`export_encoder`.
    """
    return _traced(program_of(model, layers=layers, normalise=normalise, points=points, voxel_size=voxel_size))


def card_of(traced: EncoderProgram) -> dict[str, Any]:
    """What a file tells of its program: the model, what goes in and comes out, whose weights they are."""
    model = traced.model
    return {
        "geo3d": geo3d.__version__,
        "torch": torch.__version__,
        "model": model.name or model.family,
        "family": model.family,
        "kind": model.kind,
        "licence": model.licence,
        "layers": traced.names,
        "normalise": traced.normalise,
        "inputs": traced.inputs,
        "outputs": traced.outputs,
        **traced.settings(),
        "config": model.card()["config"],
    }


def read_card(path: Path | str) -> dict[str, Any]:
    """The card of a file that :func:`export_encoder` wrote; programs are not run for it.

    Raises:
        InputError: no such file, or one without a card.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    found = None
    if path.suffix == ".onnx":
        onnx = require_extra("onnx", "onnx", "reading the card of an ONNX file")
        properties = onnx.load(path, load_external_data=False).metadata_props
        found = next((entry.value for entry in properties if entry.key == CARD), None)
    else:
        found = _card_in_archive(path)
    if found is None:
        raise InputError(f"{path}: carries no card of geo3d's; it is no file of geo3d export")
    return json.loads(found)


def _card_in_archive(path: Path) -> str | None:
    """The card in a file of a program, or in AOTInductor's metadata: JSON in either."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            kept = next((name for name in names if name.endswith(f"/extra/{CARD}")), None)
            if kept is not None:
                return archive.read(kept).decode()
            told = (json.loads(archive.read(name)) for name in names if name.endswith("_metadata.json"))
            return next((entries[CARD] for entries in told if CARD in entries), None)
    except zipfile.BadZipFile:
        return None


def _traced(traced: EncoderProgram) -> ExportedProgram:
    """The program, compared with its encoder.

    Raises:
        InputError: the network does something that cannot be traced.
    """
    training = [module for module in traced.model.modules() if module.training]
    traced.eval()
    args, named = traced.call(traced.example())
    try:
        with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
            program = torch.export.export(traced, args, named, dynamic_shapes=traced.sizes(), strict=False)
        filled_up = traced.normalise != "no"  # then any size will do
        program._guards_code[:] = [g for g in program._guards_code if not (filled_up or _NOT_ONE.search(g))]
        _trim(program)
        _compare(traced, program)
    except torch._dynamo.exc.UserError as error:
        raise InputError(f"export: {type(traced.model).__name__} cannot be traced: {_first_line(error)}") from error
    finally:
        for module in training:
            module.training = True
    return program


def _trim(program: ExportedProgram) -> None:
    """Take out what no output needs, weights as well, and from which line each operation came."""
    program.graph.eliminate_dead_code()
    specs, nodes = program.graph_signature.input_specs, program.graph.find_nodes(op="placeholder")
    for spec, node in list(zip(specs, nodes, strict=True)):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users:
            program.graph.erase_node(node)
            specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that it was made on
    program.graph_module.recompile()


@torch.no_grad()
def _compare(traced: EncoderProgram, program: ExportedProgram) -> None:
    """Raise InputError unless a program gives the figures of its encoder, at the smallest sizes that there are."""
    args, named = traced.call(traced.smallest())
    wanted, found = traced(*args, **named), program.module()(*args, **named)
    for name, value in wanted.items():
        other = found[name]
        near = value.shape == other.shape and value.dtype == other.dtype
        if near and value.numel():
            reach = value.double().abs().max() + 1e-12
            near = bool(((value.double() - other.double()).abs().max() / reach) <= _TOLERANCE)
        if not near:
            raise InputError(
                f"export: the program of {type(traced.model).__name__} differs from the network in {name}; "
                "its forward pass depends on something that tracing does not see"
            )


def _compile(program: ExportedProgram, path: Path, card: dict[str, Any]) -> None:
    """Write a program compiled by AOTInductor."""
    settings = {"aot_inductor.metadata": {CARD: json.dumps(card)}}
    with replacing(path) as place, writing(path):
        compiled = place.with_name(f"{place.stem}.pt2")  # the name that the compiler insists on
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(compiled), inductor_configs=settings)
        except RuntimeError as error:
            raise InputError(
                f"export: AOTInductor does not compile this encoder ({_first_line(error)}); take --to program"
            ) from error


def _write_onnx(program: ExportedProgram, traced: EncoderProgram, path: Path, card: dict[str, Any]) -> None:
    """Write a program as ONNX, its weights inside."""
    program = program.run_decompositions({torch.ops.geo3d.rope_2d.default: partial(rotated, angle_dtype=torch.float32)})
    names = list(traced.outputs)
    made = torch.onnx.export(program, opset_version=_OPSET, output_names=names, verbose=False, optimize=True)
    made.model.metadata_props[CARD] = json.dumps(card)
    with replacing(path) as place, writing(path):
        made.save(place, external_data=False)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


__all__ = ["CARD", "Format", "card_of", "export_encoder", "export_program", "read_card"]
