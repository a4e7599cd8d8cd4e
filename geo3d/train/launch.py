"""Processes, devices and precision: a Lightning Fabric made from a TrainConfig."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn

from geo3d.errors import InputError
from geo3d.train.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Under FSDP, members of a ModuleList (the blocks of a network) from this many parameters on are a shard of their own,
#: unless they are ``called_in_parts``: modules whose children are called from outside their own forward pass.
SHARD_FROM = 1_000_000
#: How long a process waits for the others: the first one may mine pairs of thousands of scenes meanwhile.
_PATIENCE = timedelta(days=1)

T = TypeVar("T")


def launch(config: TrainConfig) -> Fabric:
    """Start, or join, the processes that ``config`` asks for.

    Raises:
        InputError: what is asked for cannot be had here, in the words of Lightning Fabric.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment

    devices, num_nodes = config.devices, config.num_nodes
    if TorchElasticEnvironment.detect():  # torchrun has decided
        devices = os.environ["LOCAL_WORLD_SIZE"] if devices == "auto" else devices
        num_nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        device = torch.device(_device_type(config.accelerator))
        fabric = Fabric(
            accelerator=device.type,
            devices=devices,
            num_nodes=num_nodes,
            strategy=_strategy(config.strategy, _several(devices, num_nodes, device)),
            plugins=_precision(config, device),
        )
        fabric.launch()
    except (ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        asked = (
            f"accelerator={config.accelerator}, devices={devices}, strategy={config.strategy}, num_nodes={num_nodes}"
        )
        raise InputError(f"cannot train with {asked}: {' '.join(str(error).split())}") from error
    atexit.register(_leave_processes)  # of gloo Fabric leaves it to luck whether its threads end before the interpreter
    return fabric


def _leave_processes() -> None:
    """End the connection to the other processes, where there are any."""
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # sharded networks are cycles, which hold their groups of processes
        distributed.destroy_process_group()
        gc.collect()


def first_process(fabric: Fabric, function: Callable[[], T]) -> T:
    """The result of ``function``, called in the first process alone; an InputError of it is raised in all."""
    value = error = None
    if fabric.is_global_zero:
        try:
            value = function()
        except InputError as raised:
            error = raised
    value, error = fabric.broadcast((value, error))
    if error is not None:
        raise error
    return value


def gather(fabric: Fabric, items: list[T]) -> list[T]:
    """The items of all processes in the order of their ranks; every process must call it."""
    if fabric.world_size == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(fabric.world_size)]
    distributed.all_gather_object(lists, items)
    return [item for some in lists for item in some]


def has_fast_bfloat16() -> bool:
    """Whether this CPU has matrix units for bfloat16 (AMX); true where torch cannot tell, as on other architectures."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return capabilities.get("amx_bf16", True)


def _device_type(accelerator: str) -> str:
    if accelerator != "auto":
        return accelerator
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _precision(config: TrainConfig, device: torch.device) -> Any:
    """Fabric's mixed precision, except that the batch stays as it is: positions and targets do not survive 16 bits."""
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    class Autocast(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    if config.precision == "fp16" and config.strategy == "fsdp":
        raise InputError("train.precision fp16 does not work with train.strategy fsdp; use bf16")
    if config.precision == "32":
        return Precision()
    if config.precision == "bf16":
        return Autocast("bf16-mixed", device.type)
    return Autocast("16-mixed", device.type, torch.amp.GradScaler(device.type))


def _several(devices: str, num_nodes: int, device: torch.device) -> bool:
    """Whether ``devices`` on ``num_nodes`` machines are more than one process."""
    if devices in ("auto", "-1"):
        return num_nodes > 1 or (device.type == "cuda" and torch.cuda.device_count() > 1)
    return num_nodes > 1 or "," in devices.strip(",") or (devices.isdigit() and int(devices) > 1)


def _strategy(name: str, several: bool) -> Any:
    """Fabric's strategy; processes wait for each other as long as the first may take to prepare its data."""
    from lightning_fabric.strategies import DDPStrategy

    if name == "fsdp":
        return _fully_sharded()
    return DDPStrategy(timeout=_PATIENCE) if name == "ddp" or several else name


def _fully_sharded() -> Any:
    """Fabric's strategy for torch's second FSDP, which works on CPUs too and keeps parameter names as they are."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return ModelParallelStrategy(_shard, timeout=_PATIENCE)


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Give all processes the weights of the first, then shard large blocks and the rest over all of them.

    ``mesh`` is Fabric's, which sets the processes of a machine apart; here it only says what device they have.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    everyone = init_device_mesh(mesh.device_type, (distributed.get_world_size(),))
    module.to(torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else mesh.device_type)
    for tensor in [*module.parameters(), *module.buffers()]:
        distributed.broadcast(tensor.detach(), 0)
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    for block in [block for members in reversed(lists) for block in members]:
        whole = not getattr(block, "called_in_parts", False)
        if whole and sum(p.numel() for p in block.parameters()) >= SHARD_FROM:
            fully_shard(block, mesh=everyone)
    return fully_shard(module, mesh=everyone)
