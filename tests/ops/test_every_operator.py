"""What must hold for every operator and each of its kernels; a new operator is covered by its entry in EXAMPLES."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import getitem
from typing import Any

import pytest
import torch
from operator_examples import EXAMPLES, Arguments, cast_arguments, outputs_of, overload, require_library, run
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from geo3d.ops import explain, list_operators, prefer_backend
from geo3d.ops.registry import Kernel, Operator, get_operator


def _is_differentiable(name: str, position: int, argument: Any) -> bool:
    examples = EXAMPLES[name]
    is_float = isinstance(argument, Tensor) and argument.is_floating_point()
    return is_float and examples.derivatives and position not in examples.fixed


def _differentiable(name: str, arguments: Arguments) -> Arguments:
    return tuple(a.detach().requires_grad_() if _is_differentiable(name, i, a) else a for i, a in enumerate(arguments))


def _backward(outputs: tuple[Tensor, ...]) -> None:
    """From small integers, equal for equal shapes and exact in every dtype, as gradients of the outputs."""
    outputs = tuple(output for output in outputs if output.requires_grad)
    gradients = (torch.randint(-3, 4, o.shape, generator=torch.Generator().manual_seed(0)) for o in outputs)
    torch.autograd.backward(outputs, [gradient.to(output) for gradient, output in zip(gradients, outputs)])


def _of_cases() -> Iterator[Any]:
    for name, examples in EXAMPLES.items():
        for case, arguments in examples.cases.items():
            yield pytest.param(name, arguments, id=f"{name}-{case}")


def _of_kernels() -> Iterator[Any]:
    for name in EXAMPLES:
        for kernel in get_operator(name).kernels:
            marks = [pytest.mark.cuda] if kernel.device_type == "cuda" else []
            for dtype in kernel.dtypes:
                label = f"{name}-{kernel.name}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(name, kernel, dtype, id=label, marks=marks)


def _require_kernel(kernel: Kernel) -> None:
    if kernel.function is None:
        require_library(kernel.device_type)
    elif (reason := kernel.why_missing()) is not None:
        pytest.skip(reason)


def test_every_operator_has_examples() -> None:
    assert set(EXAMPLES) == set(list_operators())
    for name, examples in EXAMPLES.items():
        assert {d for k in get_operator(name).kernels for d in k.dtypes} == set(examples.tolerances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "reference"])
@pytest.mark.parametrize(("name", "arguments"), list(_of_cases()))
def test_opcheck(name: str, arguments: Arguments, dtype: torch.dtype) -> None:
    """Schema, fake kernel with strides, autograd registration, and tracing with dynamic shapes."""
    torch.library.opcheck(overload(name), _differentiable(name, cast_arguments(name, arguments, dtype)))


@pytest.mark.parametrize(("name", "kernel", "dtype"), list(_of_kernels()))
def test_kernel_agrees_with_reference_in_float64(name: str, kernel: Kernel, dtype: torch.dtype) -> None:
    _require_kernel(kernel)
    operator, examples, device = get_operator(name), EXAMPLES[name], kernel.device_type
    relative, absolute = examples.tolerances[dtype]
    for case, arguments in examples.cases.items():
        cast = cast_arguments(name, arguments, dtype, device)
        with prefer_backend(name, kernel.name):
            assert explain(name, *cast)[kernel.name] == "chosen", case
            results = run(name, overload(name), cast)
        expected = run(name, operator.reference, cast_arguments(name, cast, torch.float64, device))
        assert len(results) == len(expected)
        for result, exact in zip(results, expected):
            # A result that is only kept for the backward may be more exact.
            assert result.dtype in ((dtype, torch.float32) if exact.is_floating_point() else (exact.dtype,)), case
            torch.testing.assert_close(
                result.to(exact.dtype),
                exact,
                rtol=relative,
                atol=absolute,
                msg=lambda text, case=case: f"{case}: {text}",
            )


def _of_differentiable_kernels() -> Iterator[Any]:
    return (parameter for parameter in _of_kernels() if _has_derivatives(parameter.values[0]))


def _has_derivatives(name: str) -> bool:
    return get_operator(name).differentiable and EXAMPLES[name].derivatives


@pytest.mark.parametrize(("name", "kernel", "dtype"), list(_of_differentiable_kernels()))
def test_kernel_gradient_agrees_with_float64(name: str, kernel: Kernel, dtype: torch.dtype) -> None:
    _require_kernel(kernel)
    examples, device = EXAMPLES[name], kernel.device_type
    relative, absolute = examples.tolerances[dtype]
    for case, arguments in examples.cases.items():
        low = _differentiable(name, cast_arguments(name, arguments, dtype, device))
        high = _differentiable(
            name, cast_arguments(name, cast_arguments(name, arguments, dtype, device), torch.float64, device)
        )
        with prefer_backend(name, kernel.name):
            _backward(outputs_of(overload(name)(*low)))
        _backward(outputs_of(get_operator(name).reference(*high)))
        for i, (a, b) in enumerate(zip(low, high)):
            if _is_differentiable(name, i, a):
                torch.testing.assert_close(
                    a.grad.double(), b.grad, rtol=relative, atol=absolute, msg=lambda text, case=case: f"{case}: {text}"
                )


@pytest.mark.parametrize("name", [name for name in EXAMPLES if _has_derivatives(name)])
def test_derivatives_numerically(name: str) -> None:
    """First and second derivatives of the operator, and of its reference by plain autograd, in float64."""
    for function in (overload(name), get_operator(name).reference):
        arguments = _differentiable(name, EXAMPLES[name].small)
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EXAMPLES)
def test_compiles_in_one_graph(name: str, backend: str) -> None:
    written = EXAMPLES[name].written

    def function(*tensors: Any) -> tuple[Tensor, ...]:
        own = [a * 1 if i == 0 or i in written else a for i, a in enumerate(tensors)]
        outputs = outputs_of(overload(name)(*own))
        return tuple(output + 1 for output in (*outputs, *(own[i] for i in written)))

    torch.compiler.reset()  # of the graphs of other operators, as the code of `function` is the same
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    arguments = cast_arguments(name, next(iter(EXAMPLES[name].cases.values())), torch.float32)
    eager, traced = (_differentiable(name, arguments) for _ in range(2))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # results as long as the values say
        expected, results = function(*eager), compiled(*traced)
    torch.testing.assert_close(results, expected)
    if not EXAMPLES[name].derivatives:
        return
    _backward(expected)
    _backward(results)
    for a, b in zip(traced, eager):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a.grad, b.grad)


class _Module(torch.nn.Module):
    def __init__(self, name: str, constants: Arguments) -> None:
        super().__init__()
        self.operator, self.constants, self.written = overload(name), constants, EXAMPLES[name].written

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        own = [a.clone() if i in self.written else a for i, a in enumerate(tensors)]
        return *outputs_of(self.operator(*own, *self.constants)), *(own[i] for i in self.written)


@pytest.mark.parametrize("name", EXAMPLES)
def test_exports_with_dynamic_shapes(name: str) -> None:
    examples = EXAMPLES[name]
    arguments = cast_arguments(name, next(iter(examples.cases.values())), torch.float32)
    count = sum(isinstance(a, Tensor) for a in arguments)
    module = _Module(name, arguments[count:])
    program = torch.export.export(module, arguments[:count], dynamic_shapes=(examples.dynamic_shapes,))
    called = [node for node in program.graph.nodes if node.op == "call_function" and node.target is not getitem]
    # Which sizes are checked, and how, differs between releases of torch.
    targets = {node.target for node in called if isinstance(node.meta["val"], Tensor | tuple)}
    if examples.written:
        targets = targets - {torch.ops.aten.clone.default} | ({overload(name)} & {node.target for node in called})
    assert targets == {overload(name)}
    resized = cast_arguments(name, examples.resized, torch.float32)[:count]
    torch.testing.assert_close(program.module()(*resized), module(*resized))


def _of_bad_arguments() -> Iterator[Any]:
    for name, examples in EXAMPLES.items():
        for label, (arguments, error, message) in examples.bad.items():
            yield pytest.param(name, arguments, error, message, id=f"{name}-{label}")


@pytest.mark.parametrize(("name", "arguments", "error", "message"), list(_of_bad_arguments()))
def test_bad_arguments_are_refused(name: str, arguments: Arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        overload(name)(*arguments)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if get_operator(name).kernels])
def test_explain_names_the_kernel_that_runs(name: str) -> None:
    require_library("cpu")
    examples = EXAMPLES[name]
    arguments = next(iter(examples.cases.values()))
    others = [kernel for kernel in get_operator(name).kernels if kernel.name != "cpu"]
    assert explain(name, *cast_arguments(name, arguments, torch.float32)) == {
        "cpu": "chosen",
        **{kernel.name: "not needed" for kernel in others},
        "reference": "not needed",
    }
    if arguments[0].is_floating_point() and torch.float64 not in examples.tolerances:
        assert explain(name, arguments[0]) == {
            "cpu": "refused: no kernel for torch.float64",
            **{kernel.name: "refused: the tensor is on cpu" for kernel in others},
            "reference": "chosen",
        }


@pytest.mark.parametrize(
    ("name", "kernel"), [(name, kernel) for name, examples in EXAMPLES.items() for kernel in examples.kernel_refusals]
)
def test_kernels_refuse_what_they_cannot_take(name: str, kernel: str) -> None:
    arguments, message = EXAMPLES[name].kernel_refusals[kernel]
    (candidate,) = (k for k in get_operator(name).kernels if k.name == kernel)
    assert message in candidate.refuse(*arguments)


def test_explain_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"no operator 'rope_3d'; there are .*rope_2d"):
        explain("rope_3d", torch.zeros(1))


def test_a_preferred_backend_comes_first() -> None:
    operator = get_operator("sparse_conv")
    assert [kernel.name for kernel in operator.by_preference()] == ["cpu", "cuda", "spconv"]
    with prefer_backend("sparse_conv", "spconv"):
        assert [kernel.name for kernel in operator.by_preference()] == ["spconv", "cpu", "cuda"]
        with prefer_backend("sparse_conv", "cuda"):
            assert operator.by_preference()[0].name == "cuda"
        assert list(explain("sparse_conv", torch.zeros(1, 1))) == ["spconv", "cpu", "cuda", "reference"]
    assert operator.by_preference()[0].name == "cpu"
    with (
        pytest.raises(ValueError, match=r"sparse_conv has no kernel 'tensor cores'; there are cpu, cuda, spconv"),
        prefer_backend("sparse_conv", "tensor cores"),
    ):
        pass


def test_deterministic_mode_passes_over_a_kernel_that_is_not() -> None:
    require_library("cpu")
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
