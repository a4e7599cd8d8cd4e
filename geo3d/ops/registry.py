"""What all operators share: entry in the dispatcher, choice of kernel, and the explanation of that choice.

An operator is ``geo3d::name`` in torch's dispatcher. Python defines it, so it is complete without any library: its
reference runs on every device and dtype. A compiled library adds kernels as ``geo3d_kernels::name``, one per device;
the operator calls one where its predicate has nothing against it. What :func:`explain` tells and what runs
come from the same function, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops import _library

# Kept for the life of the process: dropping a Library takes its definitions out of the dispatcher.
_OPERATORS_LIBRARY = torch.library.Library("geo3d", "FRAGMENT")
_KERNELS_LIBRARY = torch.library.Library("geo3d_kernels", "FRAGMENT")
_REFERENCE = "reference"
# Operator -> kernel that comes before the others. Not per thread: autograd calls backwards from threads of its own.
_PREFERRED: dict[str, str] = {}

Result = Tensor | tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Kernel:
    """A fast implementation of an operator for one type of device: a compiled one, or a call of another package.

    Args:
        device_type: ``cpu`` or ``cuda``.
        dtypes: what the operator's first tensor may be.
        refuse: reason why it cannot take these arguments beyond device and dtype, or None.
        deterministic: whether equal inputs give equal bits; if not, it stands back in deterministic mode.
        name: by which :func:`explain` and :func:`prefer_backend` call it; that of the device for a compiled one.
        function: what to call; None: ``geo3d_kernels::<operator>`` of the compiled library for the device.
        why_unavailable: reason why ``function`` cannot be called at all, or None.
    """

    device_type: str
    dtypes: tuple[torch.dtype, ...]
    refuse: Callable[..., str | None] = lambda *args: None
    deterministic: bool = True
    name: str = ""
    function: Callable[..., Result] | None = field(default=None, repr=False)
    why_unavailable: Callable[[], str | None] = lambda: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.device_type)

    def why_missing(self) -> str | None:
        """Reason why there is nothing to call, whatever the arguments, or None."""
        return _library.why_not_loaded(self.device_type) if self.function is None else self.why_unavailable()

    def why_not(self, tensor: Tensor, *args: Any) -> str | None:
        """Reason why this kernel does not run for these arguments of the operator, or None."""
        if tensor.device.type != self.device_type:
            return f"the tensor is on {tensor.device.type}"
        if tensor.dtype not in self.dtypes:
            return f"no kernel for {tensor.dtype}"
        if not self.deterministic and torch.are_deterministic_algorithms_enabled():
            return "not deterministic, and deterministic algorithms are asked for"
        return self.refuse(tensor, *args) or self.why_missing()


@dataclass(frozen=True)
class Operator:
    """One operator: its reference and its kernels, in the order of preference.

    Args:
        name: without the namespace.
        reference: plain PyTorch, any device, float64 too; same signature and results as the operator.
        check: raises TypeError or ValueError on arguments that the operator does not take, by shape, dtype and device.
        kernels: fast implementations.
        check_values: raises InputError on values that it does not take. Looks at tensors on the CPU alone: on other
            devices it would wait for them, and kernels there must stay inside their memory whatever the values.
        differentiable: whether it has a derivative.
    """

    name: str
    reference: Callable[..., Result]
    check: Callable[..., None]
    kernels: tuple[Kernel, ...]
    compiled: Callable[..., Result] = field(repr=False)
    check_values: Callable[..., None] | None = None
    differentiable: bool = True

    def choose(self, *args: Any) -> tuple[Kernel | None, dict[str, str]]:
        """The kernel that runs for these arguments (None: the reference), and why each one before it does not."""
        refusals: dict[str, str] = {}
        for kernel in self.by_preference():
            reason = kernel.why_not(*args)
            if reason is None:
                return kernel, refusals
            refusals[kernel.name] = reason
        return None, refusals

    def by_preference(self) -> list[Kernel]:
        """The kernels, with the one of :func:`prefer_backend` before the others."""
        return sorted(self.kernels, key=lambda kernel: kernel.name != _PREFERRED.get(self.name))

    def __call__(self, *args: Any) -> Result:
        """Check, choose and run; what the dispatcher calls below autograd.

        Raises:
            InputError: values that the operator does not take, found by ``check_values`` or by a kernel, whose message
                then begins with the operator's name.
        """
        self.check(*args)
        if self.check_values is not None and args[0].device.type == "cpu":
            self.check_values(*args)
        kernel, _ = self.choose(*args)
        if kernel is None:
            with torch.autocast(args[0].device.type, enabled=False):  # the reference chooses its own precision
                return self.reference(*args)
        if kernel.function is not None:
            return kernel.function(*args)
        try:
            return self.compiled(*args)
        except RuntimeError as error:
            # A kernel's STD_TORCH_CHECK says "function, file:line, message".
            _, found, message = str(error).partition("\n")[0].partition(f", {self.name}: ")
            if not found:
                raise
            raise InputError(f"{self.name}: {message}") from None


_OPERATORS: dict[str, Operator] = {}


def _mark_constant(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))


def _no_gradient(ctx: Any, *gradients: Tensor) -> None:
    """The backward of results that are constants to autograd."""


def define_operator(
    schema: str,
    *,
    reference: Callable[..., Result],
    check: Callable[..., None],
    fake: Callable[..., Result],
    kernels: tuple[Kernel, ...],
    check_values: Callable[..., None] | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Operator:
    """Enter an operator in the dispatcher.

    Args:
        schema: ``name(arguments) -> returns``; positional arguments, the first one a tensor. A number that is a size of
            some tensor is a ``SymInt``.
        reference, check, kernels, check_values: see :class:`Operator`.
        fake: the result's shape, strides and dtype without its values; for ``torch.compile`` and ``torch.export``.
        setup_context, backward: as :func:`torch.library.register_autograd` takes them. ``backward`` calls an operator.
            Without them no result is differentiable. An operator that writes to its arguments has none.
    """
    name = schema.partition("(")[0]
    _OPERATORS_LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _KERNELS_LIBRARY.define(schema.replace("SymInt", "int"))  # kernels meet numbers only
    compiled = getattr(torch.ops.geo3d_kernels, name).default
    operator = Operator(name, reference, check, kernels, compiled, check_values, differentiable=backward is not None)

    def checked_fake(*args: Any) -> Result:
        check(*args)
        return fake(*args)

    qualified = f"geo3d::{name}"
    _OPERATORS_LIBRARY.impl(name, operator.__call__, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, checked_fake, lib=_OPERATORS_LIBRARY)
    if not getattr(torch.ops.geo3d, name).default._schema.is_mutable:
        torch.library.register_autograd(
            qualified, backward or _no_gradient, setup_context=setup_context or _mark_constant, lib=_OPERATORS_LIBRARY
        )
    _OPERATORS[name] = operator
    return operator


def list_operators() -> list[str]:
    """Names of all operators, without the namespace."""
    return sorted(_OPERATORS)


def get_operator(name: str) -> Operator:
    """The operator called ``name``.

    Raises:
        ValueError: there is none.
    """
    if name not in _OPERATORS:
        raise ValueError(f"no operator {name!r}; there are {', '.join(list_operators())}")
    return _OPERATORS[name]


def explain(name: str, tensor: Tensor, *args: Any) -> dict[str, str]:
    """Which implementation of an operator would run, and why the others would not.

    Args:
        name: of the operator, without the namespace.
        tensor: the operator's first argument.
        args: its other arguments; needed only where a kernel's predicate looks at them.

    Returns:
        For every kernel and for the reference, in the order of preference: ``chosen``, ``refused: <why>`` or
        ``not needed``.

    Raises:
        ValueError: no operator of that name.
    """
    operator = get_operator(name)
    chosen, refusals = operator.choose(tensor, *args)
    verdicts = {kernel.name: "not needed" for kernel in operator.by_preference()} | {_REFERENCE: "not needed"}
    verdicts |= {kernel: f"refused: {reason}" for kernel, reason in refusals.items()}
    verdicts[_REFERENCE if chosen is None else chosen.name] = "chosen"
    return verdicts


@contextmanager
def prefer_backend(name: str, kernel: str) -> Iterator[None]:
    """Inside, a kernel of an operator comes before the others, where it takes the arguments; in all threads.

    A backward asks when it runs, so the call of ``backward`` belongs inside as well.

    Args:
        name: of the operator, without the namespace.
        kernel: as :func:`explain` calls it.

    Raises:
        ValueError: no operator or no kernel of that name.
    """
    kernels = [k.name for k in get_operator(name).kernels]
    if kernel not in kernels:
        raise ValueError(f"{name} has no kernel {kernel!r}; there are {', '.join(kernels)}")
    before = _PREFERRED.get(name)
    _PREFERRED[name] = kernel
    try:
        yield
    finally:
        if before is None:
            del _PREFERRED[name]
        else:
            _PREFERRED[name] = before
