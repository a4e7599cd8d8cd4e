"""Means of whole images on their way back to maps, told apart from maps that are one site large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Pooled(Tensor):
    """What was pooled over whole images, and what functions make of that alone; what meets a map is a map.

    (B, ...), or in the layout of tiles (N, ...) with the image's row for each of its cells, so that it broadcasts over
    tiles and keeps their number in reshapes.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
            if not isinstance(out, Tensor | tuple | list):
                return out
            given = list(_tensors((args, tuple(kwargs.values()))))
            count = next((len(t) for t in given if isinstance(t, Pooled) and t.ndim), None)
            kind = Tensor if any(_is_map(t, count) for t in given) else Pooled
            if isinstance(out, Tensor):
                return _as(out, kind, count)
            return type(out)(_as(t, kind, count) for t in out) if type(out) in (tuple, list) else out


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def _is_map(t: Tensor, count: int | None) -> bool:
    return not isinstance(t, Pooled | nn.Parameter) and t.ndim > 1 and len(t) == count


def _as(out: Any, kind: type[Tensor], count: int | None) -> Any:
    """``out`` as pooled rows where it is ``count`` of them, or else as an ordinary tensor."""
    if not isinstance(out, Tensor):
        return out
    kind = kind if out.ndim and len(out) == count else Tensor
    return out if type(out) is kind else out.as_subclass(kind)
