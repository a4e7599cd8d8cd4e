"""rope_2d against what is known of rotations."""

from __future__ import annotations

import math

import pytest
import torch

from geo3d.ops import rope_2d

_DTYPES = [torch.float32, torch.float64]  # the kernel, where it is built, and the reference
# Cosines, products and sums in float32 with heads of 32 channels: 2e-6 measured on scalar products of unit normals.
_TOLERANCE = {torch.float32: {"rtol": 0, "atol": 1e-5}, torch.float64: {"rtol": 0, "atol": 1e-12}}


def _tokens(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_against_multiplication_of_complex_numbers(dtype: torch.dtype) -> None:
    tokens, positions = _tokens(2, 3, 5, 24, dtype=dtype), torch.randint(-9, 9, (2, 5, 2))
    quarter = 6
    expected = torch.empty(2, 3, 5, 24, dtype=torch.float64)
    for axis in range(2):
        half = tokens[..., 12 * axis : 12 * axis + 12].double()
        planes = torch.complex(half[..., :quarter], half[..., quarter:])
        angles = positions[:, None, :, axis, None] * torch.tensor([100.0 ** (-t / quarter) for t in range(quarter)])
        turned = planes * torch.exp(1j * angles.double())
        expected[..., 12 * axis : 12 * axis + 12] = torch.cat([turned.real, turned.imag], -1)
    # The angles above are float32: 9 * 2**-24 off at most.
    torch.testing.assert_close(rope_2d(tokens, positions).double(), expected, rtol=0, atol=1e-5)


def test_rows_turn_the_first_half_and_columns_the_second() -> None:
    tokens = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 1, 4)
    y, x = 2, -3
    expected = [math.cos(y), math.sin(y), math.cos(x), math.sin(x)]
    torch.testing.assert_close(rope_2d(tokens, torch.tensor([[[y, x]]])).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_scalar_products_depend_on_the_difference_of_positions_alone(dtype: torch.dtype) -> None:
    queries, keys = _tokens(1, 4, 20, 32, dtype=dtype), _tokens(1, 4, 20, 32, dtype=dtype).flip(2)
    generator = torch.Generator().manual_seed(0)
    of_queries, of_keys = torch.randint(0, 30, (2, 1, 20, 2), generator=generator)
    shift = torch.tensor([7, -40])
    here = rope_2d(queries, of_queries) @ rope_2d(keys, of_keys).mT
    there = rope_2d(queries, of_queries + shift) @ rope_2d(keys, of_keys + shift).mT
    # Sums of 32 products, up to 40 in size, of tokens turned by float32 angles up to 37: 1.2e-5 measured.
    atol = 3 * _TOLERANCE[dtype]["atol"]
    torch.testing.assert_close(there, here, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [*_DTYPES, torch.bfloat16, torch.float16])
def test_the_origin_leaves_tokens_as_they_are(dtype: torch.dtype) -> None:
    tokens = _tokens(2, 3, 5, 16, dtype=dtype)
    assert torch.equal(rope_2d(tokens, torch.zeros(2, 5, 2, dtype=torch.int64)), tokens)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_inverse_undoes(dtype: torch.dtype) -> None:
    tokens, positions = _tokens(2, 3, 5, 16, dtype=dtype), torch.randint(-50, 50, (2, 5, 2))
    there_and_back = torch.ops.geo3d.rope_2d(rope_2d(tokens, positions), positions, 100.0, True)
    torch.testing.assert_close(there_and_back, tokens, **_TOLERANCE[dtype])


def test_tokens_are_not_changed() -> None:
    tokens, positions = _tokens(2, 3, 5, 16, dtype=torch.float32), torch.ones(2, 5, 2, dtype=torch.int64)
    before = tokens.clone()
    result = rope_2d(tokens, positions)
    assert torch.equal(tokens, before)
    assert result.data_ptr() != tokens.data_ptr()


def test_under_autocast_tokens_keep_their_dtype() -> None:
    positions = torch.ones(1, 5, 2, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            assert rope_2d(_tokens(1, 2, 5, 8, dtype=dtype), positions).dtype == dtype


def test_threads_do_not_change_a_bit() -> None:
    tokens, positions = _tokens(2, 8, 300, 64, dtype=torch.float32), torch.randint(-(10**6), 10**6, (2, 300, 2))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(rope_2d(tokens, positions))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
