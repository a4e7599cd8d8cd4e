"""Losses of dense regression with an own estimate of the error: a Laplace distribution around each value (CroCo v2).

A network says beside each value, in one more channel, how far it may be off: the scale b of a Laplace distribution,
of which the loss is the negative log-likelihood, |error| / b + log b. What bounds b is the criterion's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geo3d.errors import InputError

CriterionName = Literal["l1", "laplacian", "bounded", "bounded2"]

#: Largest bound of a criterion; beyond, losses and deviations are not finite.
_LARGEST = 1e4


@dataclass(frozen=True)
class CriterionConfig:
    """Which criterion, and its arguments; those that are None take the criterion's own.

    - ``l1``: mean of \\|error\\| over pixels and channels; no confidence.
    - ``laplacian``: b = exp(c) of a raw confidence c.
    - ``bounded``: b = a + (b - a) sigmoid(c), from 0.25 to 4 as published for flow; vectors of 1e4 do not count.
    - ``bounded2``: log b = 2 a (sigmoid(c / b) - 0.5), within +-3 as published for stereo.

    Errors of several channels are summed (CroCo v2, section 4).

    Raises:
        InputError: no such criterion, an argument that it does not take, or a value that makes no sense.
    """

    name: CriterionName = "bounded2"
    """l1 (no confidence); laplacian (b = exp c); bounded (b from ``a`` to ``b``); bounded2 (log b within +-``a``)."""
    max_gtnorm: float | None = None
    """True values of at least this length do not count; None: as published (1e4 for bounded, else none)."""
    a: float | None = None
    """Of bounded: the smallest b (0.25 as published). Of bounded2: the largest \\|log b\\| (3)."""
    b: float | None = None
    """Of bounded: the largest b (4 as published). Of bounded2: over which the confidence is divided (3)."""

    def __post_init__(self) -> None:
        for field in ("max_gtnorm", "a", "b"):
            value = getattr(self, field)
            if value is not None and (math.isnan(value) or value <= 0):
                raise InputError(f"criterion {self.name}: {field} must be positive, got {value}")
            if value is not None and field != "max_gtnorm" and value > _LARGEST:
                raise InputError(f"criterion {self.name}: {field} must be at most {_LARGEST:g}, got {value:g}")
        taken = _ARGUMENTS.get(self.name)
        if taken is None:
            raise InputError(f"there is no criterion {self.name!r}; known: {', '.join(_ARGUMENTS)}")
        extra = [field for field in ("max_gtnorm", "a", "b") if getattr(self, field) is not None and field not in taken]
        if extra:
            raise InputError(f"criterion {self.name} takes {', '.join(taken)}, not {', '.join(extra)}")
        limits = {**taken, **{field: getattr(self, field) for field in taken if getattr(self, field) is not None}}
        if self.name == "bounded" and not limits["a"] < limits["b"]:
            raise InputError(f"criterion bounded: a must be less than b, got {limits['a']:g} and {limits['b']:g}")

    def argument(self, field: Literal["max_gtnorm", "a", "b"]) -> float:
        """One of the arguments, as given or as published."""
        value = getattr(self, field)
        return _ARGUMENTS[self.name][field] if value is None else value

    def build(self) -> Criterion:
        """The criterion."""
        return _CRITERIA[self.name](self)


#: Criteria, their arguments and the published values of these.
_ARGUMENTS: dict[str, dict[str, float]] = {
    "l1": {"max_gtnorm": math.inf},
    "laplacian": {"max_gtnorm": math.inf},
    "bounded": {"max_gtnorm": 1e4, "a": 0.25, "b": 4.0},
    "bounded2": {"max_gtnorm": math.inf, "a": 3.0, "b": 3.0},
}


class Criterion(ABC):
    """A loss of dense values, some of which are not known. Made by :meth:`CriterionConfig.build`.

    Attributes:
        config: name and arguments.
        confident: whether it reads a confidence.
    """

    confident = True

    def __init__(self, config: CriterionConfig) -> None:
        self.config = config

    def known(self, target: Tensor) -> Tensor:
        """Which pixels (B, H, W) of a target (B, C, H, W) count: finite in all channels, and not too long."""
        finite = target.isfinite().all(1)
        limit = self.config.argument("max_gtnorm")
        return finite if math.isinf(limit) else finite & (target.square().sum(1).sqrt() < limit)

    def loss(self, output: Tensor | tuple[Tensor, Tensor | None], target: Tensor) -> Tensor:
        """Mean loss of the pixels that are known.

        Args:
            output: values (B, C, H, W) and raw confidence (B, H, W), or values alone where no confidence is read.
            target: (B, C, H, W), not finite where it is not known.

        Returns:
            A scalar; 0 where nothing is known.

        Raises:
            InputError: shapes that differ, or no confidence where one is read.
        """
        values, confidence = (output, None) if isinstance(output, Tensor) else output
        if values.shape != target.shape or values.ndim != 4:
            raise InputError(
                f"{self.config.name}: values and target must be (B, C, H, W) alike, got {tuple(values.shape)} and "
                f"{tuple(target.shape)}"
            )
        known = self.known(target)
        count = known.sum().clamp_min(1)
        # What is not known is made harmless before the difference: its gradient would be 0 times not-a-number.
        error = (values - torch.where(known.unsqueeze(1), target, values.detach())).abs()
        if not self.confident:
            return error.sum() / (count * values.shape[1])
        if confidence is None or confidence.shape != known.shape:
            shape = None if confidence is None else tuple(confidence.shape)
            raise InputError(f"{self.config.name}: needs a confidence (B, H, W) {tuple(known.shape)}, got {shape}")
        log_b = self.log_deviation(confidence)
        pixels = error.sum(1) / log_b.exp() + log_b
        return pixels.where(known, 0.0).sum() / count

    def deviation(self, confidence: Tensor) -> Tensor:
        """The scale b of the Laplace distribution, in the target's unit: of a raw confidence; lower is surer."""
        return self.log_deviation(confidence).exp()

    @abstractmethod
    def log_deviation(self, confidence: Tensor) -> Tensor:
        """log b of a raw confidence.

        Raises:
            InputError: the criterion reads no confidence.
        """


class _L1(Criterion):
    confident = False

    def log_deviation(self, confidence: Tensor) -> Tensor:
        raise InputError("l1: networks that are trained by it have no confidence")


class _Laplacian(Criterion):
    def log_deviation(self, confidence: Tensor) -> Tensor:
        return confidence


class _Bounded(Criterion):
    """b lies between two bounds."""

    def log_deviation(self, confidence: Tensor) -> Tensor:
        a, b = self.config.argument("a"), self.config.argument("b")
        return (a + (b - a) * confidence.sigmoid()).log()


class _Bounded2(Criterion):
    """log b lies between two bounds, 0 apart on either side."""

    def log_deviation(self, confidence: Tensor) -> Tensor:
        a, b = self.config.argument("a"), self.config.argument("b")
        return 2 * a * ((confidence / b).sigmoid() - 0.5)


_CRITERIA: dict[str, type[Criterion]] = {
    "l1": _L1,
    "laplacian": _Laplacian,
    "bounded": _Bounded,
    "bounded2": _Bounded2,
}


__all__ = ["Criterion", "CriterionConfig", "CriterionName"]
