"""What must hold for every operator and each of its kernels; a new operator is covered by its entry in EXAMPLES."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim

from geo3d.ops import _library, explain, list_operators
from geo3d.ops.registry import Operator, get_operator

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Examples:
    """Arguments on which an operator is tested. Floating tensors are random with unit variance, float64, on the CPU.

    Args:
        cases: name of a case -> its arguments.
        small: a case of few elements, for numeric gradients.
        resized: the first case with other sizes in its dynamic dimensions.
        tolerances: dtype -> (relative, absolute) error of a kernel against the float64 reference.
        dynamic_shapes: for torch.export, of the tensors among the arguments, which come first.
        bad: name -> (arguments, error, what its message says).
        kernel_refusals: kernel -> (arguments that it does not take, what explain says of it); on the kernel's device.
    """

    cases: dict[str, Arguments]
    small: Arguments
    resized: Arguments
    tolerances: dict[torch.dtype, tuple[float, float]]
    dynamic_shapes: tuple[Any, ...]
    bad: dict[str, tuple[Arguments, type[Exception], str]]
    kernel_refusals: dict[str, tuple[Arguments, str]] = field(default_factory=dict)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def _grid(batch: int, height: int, width: int) -> Tensor:
    rows_columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(rows_columns, -1).reshape(1, height * width, 2).repeat(batch, 1, 1)


def _scattered(batch: int, length: int, reach: int) -> Tensor:
    return torch.randint(-reach, reach, (batch, length, 2), generator=torch.Generator().manual_seed(reach))


def _rope_2d_examples() -> Examples:
    projection = _random(2, 12, 3, 4, 32)  # (B, N, q/k/v, H, D), as a linear layer leaves it
    tokens, positions = _random(2, 3, 12, 16), _grid(2, 3, 4)
    batch, length = Dim("batch", min=2, max=64), Dim("length", min=2, max=4096)
    return Examples(
        cases={
            "grid": (_random(2, 4, 12, 64), _grid(2, 3, 4), 100.0, False),
            "inverse": (tokens, positions, 100.0, True),
            "viewed projection": (projection.permute(2, 0, 3, 1, 4)[1], positions, 100.0, False),
            "strided channels": (_random(2, 3, 16, 12).transpose(2, 3), positions, 100.0, False),
            "every other channel": (_random(2, 3, 12, 32)[..., ::2], positions, 100.0, False),
            "broadcast tokens": (_random(1, 1, 12, 16).expand(2, 3, 12, 16), positions, 100.0, False),
            "strided positions": (tokens, _grid(2, 12, 4)[:, ::4].flip(-1), 100.0, False),
            "swapped axes of positions": (tokens, _grid(2, 3, 4).mT.contiguous().mT, 100.0, False),
            "negative, differs in batch": (tokens, _scattered(2, 12, 20), 100.0, False),
            "far apart": (tokens, _scattered(2, 12, 10**6), 10000.0, False),
            "extreme positions": (_random(1, 2, 2, 4), torch.tensor([[[2**63 - 1, -(2**63)], [0, 1]]]), 100.0, False),
            "odd number of frequencies": (_random(1, 2, 12, 44), _grid(1, 3, 4), 100.0, False),
            "many tokens": (_random(2, 3, 900, 32), _grid(2, 30, 30), 100.0, False),
            "no batch": (_random(0, 3, 12, 16), _grid(0, 3, 4), 100.0, False),
            "no heads": (_random(2, 0, 12, 16), positions, 100.0, False),
            "no tokens": (_random(2, 3, 0, 16), _grid(2, 0, 4), 100.0, False),
            "no channels": (_random(2, 3, 12, 0), positions, 100.0, False),
        },
        small=(_random(2, 2, 3, 8), _scattered(2, 3, 5), 100.0, False),
        resized=(_random(5, 4, 30, 64), _grid(5, 6, 5), 100.0, False),
        # Products and cosines are rounded in float32: at most 1.5 * 2**-23 * (|u| + |v|), 6e-7 measured on these;
        # the result is rounded once to its dtype, which errs by 2**-8 of it in bfloat16 and by 2**-11 in float16.
        tolerances={
            torch.float32: (0.0, 1.5e-6),
            torch.bfloat16: (2.0**-8, 1.5e-6),
            torch.float16: (2.0**-11, 1.5e-6),
        },
        dynamic_shapes=({0: batch, 2: length}, {0: batch, 1: length}),
        bad={
            "integer tokens": ((tokens.long(), positions, 100.0, False), TypeError, "tokens must be float32"),
            "32-bit positions": ((tokens, positions.int(), 100.0, False), TypeError, "positions must be int64"),
            "head dimension": ((tokens[..., :6], positions, 100.0, False), ValueError, "multiple of 4"),
            "three dimensions": ((tokens[0], positions, 100.0, False), ValueError, "B, H, N, D"),
            "fewer positions": ((tokens, positions[:, :5], 100.0, False), ValueError, "must be .B, N, 2. = .2, 12, 2."),
            "positions of one batch": ((tokens, positions[:1], 100.0, False), ValueError, "got .1, 12, 2."),
            "base": ((tokens, positions, 0.0, False), ValueError, "base must be positive"),
            "other device": ((tokens, positions.to("meta"), 100.0, False), ValueError, "tokens are on cpu"),
        },
        kernel_refusals={"cuda": ((_random(1, 1, 12, 516), _grid(1, 3, 4), 100.0, False), "516 is over 512")},
    )


EXAMPLES: dict[str, Examples] = {"rope_2d": _rope_2d_examples()}


def _cast(arguments: Arguments, dtype: torch.dtype, device: str = "cpu") -> Arguments:
    """The arguments with floating tensors in ``dtype``, tensors moved to ``device`` with their strides kept."""
    return tuple(_cast_tensor(a, dtype, device) if isinstance(a, Tensor) else a for a in arguments)


def _cast_tensor(tensor: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    target = dtype if tensor.is_floating_point() else tensor.dtype
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    storage = tensor.as_strided((last + 1 if tensor.numel() else 0,), (1,)).to(device, target)
    return storage.as_strided(tensor.shape, tensor.stride())


def _differentiable(arguments: Arguments) -> Arguments:
    floats = (isinstance(a, Tensor) and a.is_floating_point() for a in arguments)
    return tuple(a.detach().requires_grad_() if f else a for a, f in zip(arguments, floats))


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def _backward(outputs: tuple[Tensor, ...]) -> None:
    """From small integers, equal for equal shapes and exact in every dtype, as gradients of the outputs."""
    for output in outputs:
        if output.requires_grad:
            gradient = torch.randint(-3, 4, output.shape, generator=torch.Generator().manual_seed(0))
            output.backward(gradient.to(output), retain_graph=True)


def _overload(name: str) -> Any:
    return getattr(torch.ops.geo3d, name).default


def _of_cases() -> Iterator[Any]:
    for name, examples in EXAMPLES.items():
        for case, arguments in examples.cases.items():
            yield pytest.param(name, arguments, id=f"{name}-{case}")


def _of_kernels() -> Iterator[Any]:
    for name in EXAMPLES:
        for kernel in get_operator(name).kernels:
            marks = [pytest.mark.cuda] if kernel.device_type == "cuda" else []
            for dtype in kernel.dtypes:
                label = f"{name}-{kernel.device_type}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(name, kernel.device_type, dtype, id=label, marks=marks)


def _require_library(device_type: str) -> None:
    if device_type == "cpu" and shutil.which("c++"):
        assert _library.why_not_loaded(device_type) is None, "there is a compiler: run `make install`"
    if (reason := _library.why_not_loaded(device_type)) is not None:
        pytest.skip(f"no {device_type} kernels: {reason}")


def test_every_operator_has_examples() -> None:
    assert set(EXAMPLES) == set(list_operators())
    for name, examples in EXAMPLES.items():
        assert {d for k in get_operator(name).kernels for d in k.dtypes} == set(examples.tolerances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "reference"])
@pytest.mark.parametrize(("name", "arguments"), list(_of_cases()))
def test_opcheck(name: str, arguments: Arguments, dtype: torch.dtype) -> None:
    """Schema, fake kernel with strides, autograd registration, and tracing with dynamic shapes."""
    torch.library.opcheck(_overload(name), _differentiable(_cast(arguments, dtype)))


@pytest.mark.parametrize(("name", "device", "dtype"), list(_of_kernels()))
def test_kernel_agrees_with_reference_in_float64(name: str, device: str, dtype: torch.dtype) -> None:
    _require_library(device)
    operator, examples = get_operator(name), EXAMPLES[name]
    relative, absolute = examples.tolerances[dtype]
    for case, arguments in examples.cases.items():
        cast = _cast(arguments, dtype, device)
        assert explain(name, *cast)[device] == "chosen", case
        results = _outputs(_overload(name)(*cast))
        expected = _outputs(operator.reference(*_cast(cast, torch.float64, device)))
        assert len(results) == len(expected)
        for result, exact in zip(results, expected):
            assert result.dtype == (dtype if exact.is_floating_point() else exact.dtype), case
            torch.testing.assert_close(
                result.to(exact.dtype),
                exact,
                rtol=relative,
                atol=absolute,
                msg=lambda text, case=case: f"{case}: {text}",
            )


def _of_differentiable_kernels() -> Iterator[Any]:
    return (parameter for parameter in _of_kernels() if get_operator(parameter.values[0]).differentiable)


@pytest.mark.parametrize(("name", "device", "dtype"), list(_of_differentiable_kernels()))
def test_kernel_gradient_agrees_with_float64(name: str, device: str, dtype: torch.dtype) -> None:
    _require_library(device)
    examples = EXAMPLES[name]
    relative, absolute = examples.tolerances[dtype]
    for case, arguments in examples.cases.items():
        low = _differentiable(_cast(arguments, dtype, device))
        high = _differentiable(_cast(_cast(arguments, dtype, device), torch.float64, device))
        _backward(_outputs(_overload(name)(*low)))
        _backward(_outputs(get_operator(name).reference(*high)))
        for a, b in zip(low, high):
            if isinstance(a, Tensor) and a.is_floating_point():
                torch.testing.assert_close(
                    a.grad.double(), b.grad, rtol=relative, atol=absolute, msg=lambda text, case=case: f"{case}: {text}"
                )


@pytest.mark.parametrize("name", [name for name in EXAMPLES if get_operator(name).differentiable])
def test_derivatives_numerically(name: str) -> None:
    """First and second derivatives of the operator, and of its reference by plain autograd, in float64."""
    for function in (_overload(name), get_operator(name).reference):
        arguments = _differentiable(EXAMPLES[name].small)
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EXAMPLES)
def test_compiles_in_one_graph(name: str, backend: str) -> None:
    def function(tensor: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return tuple(output + 1 for output in _outputs(_overload(name)(tensor * 1, *rest)))

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    eager, traced = (_differentiable(_cast(next(iter(EXAMPLES[name].cases.values())), torch.float32)) for _ in range(2))
    expected, results = function(*eager), compiled(*traced)
    torch.testing.assert_close(results, expected)
    _backward(expected)
    _backward(results)
    for a, b in zip(traced, eager):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a.grad, b.grad)


class _Module(torch.nn.Module):
    def __init__(self, name: str, constants: Arguments) -> None:
        super().__init__()
        self.operator, self.constants = _overload(name), constants

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.operator(*tensors, *self.constants)


@pytest.mark.parametrize("name", EXAMPLES)
def test_exports_with_dynamic_shapes(name: str) -> None:
    examples = EXAMPLES[name]
    arguments = _cast(next(iter(examples.cases.values())), torch.float32)
    count = sum(isinstance(a, Tensor) for a in arguments)
    module = _Module(name, arguments[count:])
    program = torch.export.export(module, arguments[:count], dynamic_shapes=(examples.dynamic_shapes,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [_overload(name)]
    resized = _cast(examples.resized, torch.float32)[:count]
    torch.testing.assert_close(program.module()(*resized), module(*resized))


def _of_bad_arguments() -> Iterator[Any]:
    for name, examples in EXAMPLES.items():
        for label, (arguments, error, message) in examples.bad.items():
            yield pytest.param(name, arguments, error, message, id=f"{name}-{label}")


@pytest.mark.parametrize(("name", "arguments", "error", "message"), list(_of_bad_arguments()))
def test_bad_arguments_are_refused(name: str, arguments: Arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        _overload(name)(*arguments)


@pytest.mark.parametrize("name", EXAMPLES)
def test_explain_names_the_kernel_that_runs(name: str) -> None:
    _require_library("cpu")
    examples = EXAMPLES[name]
    arguments = next(iter(examples.cases.values()))
    assert explain(name, *_cast(arguments, torch.float32)) == {
        "cpu": "chosen",
        "cuda": "not needed",
        "reference": "not needed",
    }
    if arguments[0].is_floating_point():
        assert explain(name, arguments[0]) == {
            "cpu": "refused: no kernel for torch.float64",
            "cuda": "refused: the tensor is on cpu",
            "reference": "chosen",
        }


@pytest.mark.parametrize(
    ("name", "kernel"), [(name, kernel) for name, examples in EXAMPLES.items() for kernel in examples.kernel_refusals]
)
def test_kernels_refuse_what_they_cannot_take(name: str, kernel: str) -> None:
    arguments, message = EXAMPLES[name].kernel_refusals[kernel]
    (candidate,) = (k for k in get_operator(name).kernels if k.device_type == kernel)
    assert message in candidate.refuse(*arguments)


def test_explain_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"no operator 'rope_3d'; there are .*rope_2d"):
        explain("rope_3d", torch.zeros(1))


def test_deterministic_mode_passes_over_a_kernel_that_is_not() -> None:
    _require_library("cpu")
    operator: Operator = get_operator("rope_2d")
    loose = replace(operator, kernels=tuple(replace(k, deterministic=False) for k in operator.kernels))
    tokens = torch.zeros(1, 1, 1, 4)
    assert loose.choose(tokens)[0] is not None
    torch.use_deterministic_algorithms(True)
    try:
        chosen, refusals = loose.choose(tokens)
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen is None
    assert refusals["cpu"] == "not deterministic, and deterministic algorithms are asked for"
