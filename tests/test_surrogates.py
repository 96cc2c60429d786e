"""Surrogate derivatives: every kernel computes the formula of its shape, and the shapes are safe to pass around."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re

import pytest
import torch

import snnfast as sf
from snnfast import surrogate as shapes

# The formulas of MATH.md section 2, written again on purpose: in float64, from d = potential minus threshold.
FORMULAS = {
    "FastSigmoid": lambda d, g, b: b * (1 + g * abs(d)) ** -2.0,
    "Triangle": lambda d, g, b: b * max(0.0, 1 - g * abs(d)),
    "Exponential": lambda d, g, b: b * math.exp(-g * abs(d)),
    "Rectangle": lambda d, g, b: b if g * abs(d) <= 1 else 0.0,
    "Arctangent": lambda d, g, b: b / (1 + (g * d) * (g * d)),
    "Sigmoid": lambda d, g, b: b * math.exp(-g * abs(d)) / (1 + math.exp(-g * abs(d))) ** 2,
    "Gaussian": lambda d, g, b: b * math.exp(-(g * d) * (g * d)),
}
SHAPES = list(shapes.SHAPES.values())
DEFAULTS = {
    "FastSigmoid": (10.0, 1.0),
    "Triangle": (1.0, 1.0),
    "Exponential": (1.0, 0.5),
    "Rectangle": (2.0, 1.0),
    "Arctangent": (math.pi, 1.0),
    "Sigmoid": (4.0, 4.0),
    "Gaussian": (2.0, 2 / math.sqrt(math.pi)),
}
# gamma, beta; 1/8 and 8 are exact in every dtype, so that the corners of triangle and rectangle are hit.
SETTINGS = [(10.0, 1.0), (0.125, 3.0), (8.0, 0.5), (2.5, 1e-3), (300.0, 7.0)]


def grid(dtype: torch.dtype) -> torch.Tensor:
    """d: zero, tiny, ordinary, the corners of the bounded shapes, huge and infinite, both signs; an odd number."""
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    magnitudes = [
        smallest,
        1e-30,
        1e-10,
        1e-3,
        1 / 299,
        0.125,
        0.126,
        0.41,
        8.0,
        8.01,
        50.0,
        1e4,
        1e10,
        1e19,
        1e30,
        largest / 2,
        largest,
        math.inf,
    ]
    d = torch.cat([torch.tensor(magnitudes, dtype=torch.float64), torch.linspace(0.001, 20, 250, dtype=torch.float64)])
    return torch.cat([d, -d, torch.zeros(1, dtype=torch.float64)]).to(dtype)


def kernel_derivative(surrogate: shapes.Surrogate, d: torch.Tensor) -> torch.Tensor:
    """f(d) as a layer applies it: with one step and a threshold of 0, the gradient of the current."""
    current = d[None].detach().clone().requires_grad_()
    sf.IF(threshold=0.0, surrogate=surrogate)(current).backward(torch.ones_like(current))
    return current.grad[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
@pytest.mark.parametrize(("gamma", "beta"), SETTINGS)
def test_a_layers_gradient_is_the_formula_of_its_surrogate(kernels, shape, dtype, gamma, beta):
    d = grid(dtype).to(kernels.device)
    gamma, beta = torch.tensor([gamma, beta], dtype=dtype).tolist()  # as the kernels round them
    expected = torch.tensor([FORMULAS[shape.__name__](x, gamma, beta) for x in d.tolist()], dtype=torch.float64)
    found = kernel_derivative(shape(gamma=gamma, beta=beta), d).double().cpu()
    # An exponential's relative error grows with its argument, up to about 100 where float32 underflows.
    relative, underflow = (2e-5, 1e-36) if dtype == torch.float32 else (1e-12, 1e-306)
    torch.testing.assert_close(found, expected, rtol=relative, atol=underflow)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
@pytest.mark.parametrize(("gamma", "beta"), SETTINGS)
def test_derivative_is_the_formula_too(shape, gamma, beta):
    d = grid(torch.float64)
    expected = torch.tensor([FORMULAS[shape.__name__](x, gamma, beta) for x in d.tolist()], dtype=torch.float64)
    found = shape(gamma=gamma, beta=beta).derivative(d)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_zero_sharpness_is_a_constant_slope_and_zero_height_is_none(kernels, shape):
    d = torch.linspace(-3, 3, 37, device=kernels.device)
    height = 0.5 if shape is shapes.Sigmoid else 2.0  # sigma(0) * (1 - sigma(0)) is a quarter
    torch.testing.assert_close(kernel_derivative(shape(gamma=0.0, beta=2.0), d), torch.full_like(d, height))
    assert kernel_derivative(shape(gamma=3.0, beta=0.0), d).abs().max() == 0


@pytest.mark.parametrize("gamma", [0.0, 1e-45, 1e-300, 1e-39, 1e38, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("beta", [1.0, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_no_sharpness_makes_a_nan(kernels, shape, dtype, gamma, beta):
    d = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 1e-30, 1.0, math.inf], dtype=dtype, device=kernels.device)
    surrogate = shape(gamma=gamma, beta=beta)
    found = kernel_derivative(surrogate, d)
    assert found.isfinite().all() and (found[[0, -1]] == 0).all() and (found[[2, 3]] > 0).all()
    torch.testing.assert_close(found, surrogate.derivative(d), rtol=2e-5, atol=1e-36)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_the_defaults_are_the_documented_ones(shape):
    assert (shape().gamma, shape().beta) == pytest.approx(DEFAULTS[shape.__name__], rel=1e-15)


def test_a_layer_without_a_surrogate_has_the_papers():
    assert sf.IF().surrogate == sf.LIF().surrogate == shapes.FastSigmoid(gamma=10.0, beta=1.0)


ALLOWED = r"must be between 0 and 3\.4028235e\+38, the largest float32, got"
REFUSED = [
    *(
        (value, ValueError, f"{ALLOWED} {re.escape(str(value))}")
        for value in (-1.0, -1e-30, math.nan, math.inf, -math.inf, 1e39, 1e300)
    ),
    (10**400, ValueError, "must be within the range of float64"),
    *(
        (value, TypeError, f"must be a number, got {type(value).__name__}")
        for value in (True, "2", None, 1j, torch.tensor(1.0))
    ),
]


@pytest.mark.parametrize("field", ["gamma", "beta"])
@pytest.mark.parametrize(("value", "error", "words"), REFUSED, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_sharpness_and_height_are_checked(shape, value, error, words, field):
    with pytest.raises(error, match=f"{field} {words}"):
        shape(**{field: value})


@pytest.mark.parametrize("field", ["gamma", "beta"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_a_whole_number_is_taken_as_a_float(shape, field):
    assert isinstance(getattr(shape(**{field: 3}), field), float)


def test_sharpness_is_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        shapes.FastSigmoid(10.0)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_shapes_compare_hash_replace_and_pickle_like_values(shape):
    one = shape(gamma=2, beta=3)
    assert one == shape(gamma=2.0, beta=3.0) and hash(one) == hash(shape(gamma=2.0, beta=3.0))
    assert one != shape(gamma=2.5, beta=3.0)
    assert all(one != other(gamma=2, beta=3) for other in SHAPES if other is not shape)
    assert dataclasses.replace(one, gamma=5.0) == shape(gamma=5.0, beta=3.0)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == f"{shape.__name__}(gamma=2.0, beta=3.0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.gamma = 1.0


def test_every_shape_has_its_own_code_in_the_core():
    assert sorted(shape.code for shape in SHAPES) == list(range(len(SHAPES)))


def test_the_surrogates_of_releases_keep_their_names():
    for name in FORMULAS:
        assert shapes.SHAPES[name] is getattr(shapes, name) and name in shapes.__all__
