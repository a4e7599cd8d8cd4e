"""Tensors that FSDP shards over processes, beside those that are whole: one way to handle either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from geo3d.methods.method import Method


def is_sharded(value: Any) -> bool:
    """Whether ``value`` is a tensor of which each process holds a part."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a whole tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Context in which every process holds all weights of a module, so that parts of it can be called by themselves.

    Every process must enter it.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def sum_over_shards(values: Tensor, like: Tensor) -> Tensor:
    """Sum, in place, over the processes among which ``like`` is sharded; ``values`` unchanged where it is whole."""
    if is_sharded(like):
        distributed.all_reduce(values, group=like.device_mesh.get_group())
    return values


def whole(value: Any) -> Any:
    """The whole tensor on the CPU, detached (itself if it was there); other values as they are.

    Every process must call it.
    """
    if not isinstance(value, Tensor):
        return value
    if is_sharded(value):
        value = value.full_tensor()
    return value.detach().cpu().contiguous()


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """``value``, whole on every process, on the device of ``like`` and sharded as it is."""
    value = value.to(like.device)
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)


def whole_model_state(method: Method) -> dict[str, Tensor]:
    """Weights and buffers by their plain names, but for those of frozen modules. Every process must call it."""
    return {name: whole(tensor) for name, tensor in method.state_dict().items() if not method.is_frozen(name)}


def load_model_state(method: Method, state: dict[str, Tensor]) -> None:
    """Load what :func:`whole_model_state` returned; frozen modules stay as they are.

    Raises:
        RuntimeError: names, shapes or types differ, as from ``load_state_dict``.
    """
    own = method.state_dict()
    frozen = {name: tensor for name, tensor in own.items() if method.is_frozen(name)}
    for name in own.keys() & state.keys():
        if state[name].dtype != own[name].dtype:
            raise RuntimeError(f"{name} is of {state[name].dtype}, expected {own[name].dtype}")
    stored = {name: sharded_like(v, own[name]) if name in own else v for name, v in state.items()}
    method.load_state_dict(stored | frozen)


def whole_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter name. Every process must call it.

    Hyper-parameters are left out: they come from the config and the schedule.
    """
    named = [(name, p) for name, p in module.named_parameters() if p in optimizer.state]
    return {name: {key: whole(value) for key, value in optimizer.state[p].items()} for name, p in named}


def _check_optimizer_state(module: nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Kernels of optimizers do not look at shapes, and would write where nothing of theirs is."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    entries = next(iter(state.values()), {}).keys()
    for name, kept in state.items():
        if name not in shapes or kept.keys() != entries:
            raise ValueError(f"the optimizer's state of {name} is not like that of other weights")
        for key, value in kept.items():
            fits = isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided
            if not fits or value.shape != (() if key == "step" else shapes[name]):
                found = tuple(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(f"the optimizer's {key} of {name} should be {tuple(shapes[name])}, found {found}")


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Load what :func:`whole_optimizer_state` returned.

    Raises:
        ValueError: it is not what this optimizer keeps of these parameters.
    """
    _check_optimizer_state(module, state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = {p: name for name, p in module.named_parameters()}
    by_index = {}
    for index, p in enumerate(parameters):
        if names[p] in state:
            entries = state[names[p]].items()
            by_index[index] = {k: sharded_like(v, p) if v.shape == p.shape and v.ndim else v for k, v in entries}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})
