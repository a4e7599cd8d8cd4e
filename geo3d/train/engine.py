"""Engine: a method on its devices, with optimizer, precision and moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.method import Method, MethodOutput
from geo3d.train.config import TrainConfig
from geo3d.train.ema import Ema
from geo3d.train.meter import scalars
from geo3d.train.optimizer import build_optimizer
from geo3d.train.result import Outcome
from geo3d.train.sharding import (
    load_model_state,
    load_optimizer_state,
    whole_model_state,
    whole_optimizer_state,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Engine:
    """What the training loop does to a network.

    Args:
        fabric: the launched processes.
        method: the pretext task; moved to the device, wrapped or sharded, its parameter names stay as they are.
        config: optimizer, precision and so on.
    """

    def __init__(self, fabric: Fabric, method: Method, config: TrainConfig) -> None:
        self.fabric, self.method, self.config = fabric, method, config
        method.freeze()
        if config.compile:
            method.compile()
        self.model = fabric.setup_module(method).train()
        self.optimizer = fabric.setup_optimizers(build_optimizer(method, config))
        self.ema = Ema(method, config.ema_decay) if config.ema_decay is not None else None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def set_rates(self, lr: float, beta1: float | None, weight_decay: float | None = None) -> None:
        """Learning rate, and decay of the first moment and of the weights unless None, of the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate_factor"]
            if beta1 is not None:
                group["betas"] = (beta1, group["betas"][1])
            if weight_decay is not None and group["decays"]:
                group["weight_decay"] = weight_decay

    def remember_buffers(self) -> None:
        """Keep the buffers (such as running statistics) in case the step turns out bad."""
        trained = (buffer for name, buffer in self.method.named_buffers() if not self.method.is_frozen(name))
        self._buffers = [(buffer, buffer.clone()) for buffer in trained]

    def forward_backward(self, data: Any, generator: torch.Generator, last: bool) -> dict[str, Tensor]:
        """One of a step's forward passes, and its gradient added up; returns its :func:`scalars`.

        ``last`` says that it is the step's last, after which gradients are shared among processes.
        """
        alone = self.fabric.world_size == 1
        with nullcontext() if last or alone else self.fabric.no_backward_sync(self.model):
            output = self.model(self.fabric.to_device(data), generator=generator)
            self.fabric.backward(output.loss / self.config.accumulate)
        return scalars(output)

    def update(self, loss: float) -> tuple[float | None, Outcome]:
        """Change the weights by the gradient, unless it or ``loss`` is not finite.

        Returns:
            The gradient's norm before clipping (None where the loss is bad) and what was done: ``overflow`` is a
            gradient too large for fp16 at the present loss scale, which then sinks; that is no fault of the sample.
        """
        norm, outcome = None, "bad"
        if math.isfinite(loss):
            norm, outcome = self._step_optimizer()
        self.optimizer.zero_grad(set_to_none=True)
        if outcome == "updated" and self.ema is not None:
            self.ema.update()
        if outcome == "bad":
            for buffer, before in self._buffers:
                buffer.copy_(before)
        return norm, outcome

    def _step_optimizer(self) -> tuple[float, Outcome]:
        scaler = self._scaler
        self.fabric.strategy.precision.unscale_gradients(self.optimizer.optimizer)
        parameters = [p for p in self.method.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if hasattr(total, "full_tensor"):  # sharded
            total = total.full_tensor()
        norm = total.item()
        if math.isfinite(norm):
            if self.config.clip_norm is not None and norm > self.config.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, total)
            self.optimizer.step()
            return norm, "updated"
        if scaler is None:
            return norm, "bad"
        outcome: Outcome = "overflow" if scaler.get_scale() > 1 else "bad"
        self.optimizer.step()  # the scaler leaves the weights alone and lowers its scale
        return norm, outcome

    @contextmanager
    def predict(self, data: Any, generator: torch.Generator) -> Iterator[tuple[Any, MethodOutput]]:
        """Context of evaluation, without gradients: the batch on the device and what a forward pass makes of it.

        Every process must enter it.
        """
        self.model.eval()
        try:
            with torch.no_grad():
                data = self.fabric.to_device(data)
                yield data, self.model(data, generator=generator)
        finally:
            self.model.train()

    def state(self) -> dict[str, Any]:
        """Model, averaged model (or None), optimizer and loss scaler on the CPU. Every process must call it."""
        return {
            "model": whole_model_state(self.method),
            "ema": self.ema.whole_state() if self.ema is not None else None,
            "optimizer": whole_optimizer_state(self.method, self.optimizer.optimizer),
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned.

        Raises:
            InputError: the weights are of another network.
        """
        try:
            load_model_state(self.method, state["model"])
        except RuntimeError as error:
            raise InputError(f"the checkpoint holds another network: {' '.join(str(error).split())[:500]}") from error
        if self.ema is not None:
            self.ema.load(state["ema"])
        load_optimizer_state(self.method, self.optimizer.optimizer, state["optimizer"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self.fabric.strategy.precision, "scaler", None)
