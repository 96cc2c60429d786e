"""Surrogate derivatives: what stands for the derivative of the spike in the backward pass.

The paper's equation (8): the derivative of the step function is replaced by f(d), where d is the potential minus the
threshold. Every shape is a height ``beta`` and a sharpness ``gamma``; both are finite in float32 and not negative, and
plain Python numbers, so that changing them never recompiles a kernel.

Defaults are those in use in the field: the paper's for :class:`FastSigmoid`, SpikingJelly's for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnfast._arguments import hints
from snnfast._arguments.checks import LARGEST_FLOAT32, number_within

__all__ = ["Arctangent", "Exponential", "FastSigmoid", "Gaussian", "Rectangle", "Sigmoid", "Surrogate", "Triangle"]


SMALLEST = torch.finfo(torch.float32).tiny  # that is normal


def _exp_of_minus(a: Tensor) -> Tensor:
    """exp(-a) for a >= 0 as the kernels have it: 0 where it would leave the normal numbers of the dtype, or nearly."""
    return torch.exp(-a).masked_fill(a > (708.0 if a.dtype == torch.float64 else 87.0), 0.0)


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Base of the shapes. Compare, hash and replace them like any frozen dataclass.

    A subclass of your own, which overrides ``derivative``, runs in ``snnfast.reference`` only, as any callable does.

    Args:
        gamma: sharpness, in units of one over potential; >= 0 and within float32's range.
        beta: height of the derivative at the threshold; >= 0 and within float32's range.

    Raises:
        TypeError: gamma or beta is not a number.
        ValueError: gamma or beta is negative, NaN, infinite, or infinite in float32.
    """

    gamma: float
    beta: float = 1.0
    code: ClassVar[int]  # of the shape in the compiled core (csrc/calls.h)

    def __new__(cls, *args: Any, **options: Any) -> Surrogate:
        unknown = [name for name in options if name not in cls.__dataclass_fields__]
        if unknown:
            known = hints.nearest(unknown[0], cls.__dataclass_fields__) or f"; it is {cls.__doc__}"
            raise TypeError(f"{cls.__name__} has no parameter {unknown[0]!r}, only gamma and beta{known}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("gamma", "beta"):
            object.__setattr__(self, name, number_within(name, getattr(self, name), least=0, most=LARGEST_FLOAT32))

    @property
    def sharpness(self) -> float:
        """gamma as it multiplies d, a normal number of float32, so that its product with an infinite d is not NaN."""
        return max(self.gamma, SMALLEST)

    def derivative(self, d: Tensor) -> Tensor:
        """f(d) for a tensor of potentials minus thresholds; same shape and dtype."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FastSigmoid(Surrogate):
    """beta / (1 + gamma·abs(d))²: the paper's choice, equation (9), and SuperSpike's."""

    gamma: float = 10.0
    code: ClassVar[int] = 0

    def derivative(self, d: Tensor) -> Tensor:
        return self.beta / (1 + self.sharpness * d.abs()) ** 2


@dataclass(frozen=True, kw_only=True)
class Triangle(Surrogate):
    """beta · max(0, 1 − gamma·abs(d)): the paper's piece-wise linear shape."""

    gamma: float = 1.0
    code: ClassVar[int] = 1

    def derivative(self, d: Tensor) -> Tensor:
        return self.beta * (1 - self.sharpness * d.abs()).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Exponential(Surrogate):
    """beta · exp(−gamma·abs(d))."""

    gamma: float = 1.0
    beta: float = 0.5
    code: ClassVar[int] = 2

    def derivative(self, d: Tensor) -> Tensor:
        return self.beta * _exp_of_minus(self.sharpness * d.abs())


@dataclass(frozen=True, kw_only=True)
class Rectangle(Surrogate):
    """beta where gamma·abs(d) <= 1, else 0; the half-width is 1 / gamma."""

    gamma: float = 2.0
    code: ClassVar[int] = 3

    def derivative(self, d: Tensor) -> Tensor:
        return self.beta * (self.sharpness * d.abs() <= 1).to(d.dtype)


@dataclass(frozen=True, kw_only=True)
class Arctangent(Surrogate):
    """beta / (1 + (gamma d)²). SpikingJelly's and snnTorch's ATan(α) is Arctangent(gamma=πα/2, beta=α/2)."""

    gamma: float = math.pi
    code: ClassVar[int] = 4

    def derivative(self, d: Tensor) -> Tensor:
        return self.beta / (1 + (self.sharpness * d) ** 2)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Surrogate):
    """beta · σ(gamma d) (1 − σ(gamma d)). SpikingJelly's Sigmoid(α) is Sigmoid(gamma=α, beta=α)."""

    gamma: float = 4.0
    beta: float = 4.0
    code: ClassVar[int] = 5

    def derivative(self, d: Tensor) -> Tensor:
        e = _exp_of_minus(self.sharpness * d.abs())
        return self.beta * e / (1 + e) ** 2


@dataclass(frozen=True, kw_only=True)
class Gaussian(Surrogate):
    """beta · exp(−(gamma d)²). SpikingJelly's Erf(α) is Gaussian(gamma=α, beta=α/√π)."""

    gamma: float = 2.0
    beta: float = 2.0 / math.sqrt(math.pi)
    code: ClassVar[int] = 6

    def derivative(self, d: Tensor) -> Tensor:
        return self.beta * _exp_of_minus((self.sharpness * d) ** 2)


SHAPES: dict[str, type[Surrogate]] = {
    shape.__name__: shape for shape in (FastSigmoid, Triangle, Exponential, Rectangle, Arctangent, Sigmoid, Gaussian)
}
"""What the compiled kernels know. A subclass of one of these is another shape, which they do not know."""


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"module {__name__!r} has no shape {name!r}{hints.shape_of(name) or hints.nearest(name, SHAPES)}"
    )
