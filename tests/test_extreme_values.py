"""Values at the ends of the number range: kernels and reference are MATH.md's formulas there too, NaN for NaN.

The oracle is written again on purpose, in NumPy, from MATH.md sections 1 to 3: one operation after another in the
state's dtype, with a product of a factor 0 being 0.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

import snnfast as sf

INF, NAN = math.inf, math.nan
SINGLE, DOUBLE = np.finfo(np.float32), np.finfo(np.float64)
CURRENTS = [
    0.0,
    0.3,
    -0.3,
    1.0,
    -1.0,
    0.5,
    7.0,
    1e-45,
    -1e-40,
    1e-38,
    1e10,
    -1e19,
    1e30,
    -8.6e37,
    3e38,
    -3e38,
    INF,
    -INF,
    NAN,
]
GRADIENTS = [0.0, 0.0, 1.0, 1.0, -1.0, 0.7, 1e-45, 1e-30, 1e30, -1e30, INF, -INF, NAN]
THRESHOLDS = [0.0, 1e-45, 0.5, 1.0, 1e10, 3e38, INF]
TAUS = [1 + 2.0**-23, 1.5, 2.0, 20.0, 1e30, 3e38]
GAMMAS = [0.0, 1e-45, 1e-30, 0.3, 1.0, 10.0, 1e30, float(SINGLE.max)]
BETAS = [0.0, 1e-45, 0.5, 1.0, 1e30]
RESET_VALUES = [0.0, 0.25, 3e38, -3e38, 1e-45]
SHAPES = list(sf.surrogate.SHAPES)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NEURONS = 300


def product(factor, other):
    return np.where(factor == 0, np.zeros_like(factor), factor * other)


def slope_of(shape: str, d, gamma, beta):
    """MATH.md section 2, and which neurons' value another correct exponential may have differently."""
    one = d.dtype.type(1)
    unsure = np.zeros(d.shape, bool)

    def exp_of_minus(a):
        return np.where(a > (708 if d.dtype == np.float64 else 87), d.dtype.type(0), np.exp(-a))

    if shape == "FastSigmoid":
        u = one + gamma * abs(d)
        f = beta / (u * u)
    elif shape == "Triangle":
        u = one - gamma * abs(d)
        f = np.where(u < 0, d.dtype.type(0), beta * u)
    elif shape == "Rectangle":
        f = np.where(gamma * abs(d) <= 1, beta, d.dtype.type(0))
    elif shape == "Arctangent":
        u = gamma * d
        f = beta / (one + u * u)
    elif shape not in ("Exponential", "Sigmoid", "Gaussian"):
        raise ValueError(f"slope_of in tests/test_extreme_values.py has no formula of the surrogate {shape}: add it")
    else:
        u = gamma * d
        e = exp_of_minus(u * u if shape == "Gaussian" else abs(u))
        f = beta * e if shape != "Sigmoid" else beta * e / ((one + e) * (one + e))
        unsure = (f != 0) & (abs(f) < np.finfo(d.dtype).tiny * 100) | (beta > 0) & (f == 0) & (e > 0)
    return f, unsure


class Oracle:
    """One call with one neuron per channel: outputs, gradients, and which neurons' gradients depend on rounding."""

    def __init__(self, o: dict[str, Any]) -> None:
        self.o, self.S = o, np.float64 if o["dtype"] == torch.float64 else np.float32
        with np.errstate(all="ignore"):
            self.forward()
            self.backward()

    def state(self, value):
        if isinstance(value, torch.Tensor):
            value = value.detach().to(torch.float64).numpy()
        return np.asarray(value).astype(self.S)

    def forward(self) -> None:
        o, S = self.o, self.S
        self.rest = S(0) if o["reset"] == "soft" else S(o["reset_value"])
        self.theta = np.broadcast_to(self.state(o["threshold"]), NEURONS)
        self.leak = self.gain = None
        if o["tau"] is not None:
            self.tau = np.broadcast_to(np.asarray(o["tau"], np.float64), NEURONS)
            inverse = 1 / self.tau
            self.leak = (1 - inverse).astype(S)
            self.gain = inverse.astype(S) if o["decay_input"] else np.ones(NEURONS, S)
            drive = (np.float64(0 if o["reset"] == "soft" else o["reset_value"]) / self.tau).astype(S)
        self.x = self.state(o["current"])
        v = np.full(NEURONS, self.rest) if o["v0"] is None else self.state(o["v0"])
        self.before, self.h, self.fired = [], [], []
        never = not isinstance(o["threshold"], torch.Tensor) and o["threshold"] == INF
        for t in range(o["steps"]):
            self.before.append(v)
            h = v + self.x[t] if self.leak is None else self.leak * v + self.gain * self.x[t] + drive
            fired = h >= self.theta if o["fire_on_equal"] and not never else h > self.theta
            v = np.where(fired, h - self.theta if o["reset"] == "soft" else S(o["reset_value"]), h)
            self.h.append(h)
            self.fired.append(fired)
        self.outputs = np.stack(self.fired).astype(S), v, np.stack(self.h)

    def backward(self) -> None:
        o, S = self.o, self.S
        soft, zero = o["reset"] == "soft", np.zeros(NEURONS, S)
        attached = soft if o["detach_reset"] is None else not o["detach_reset"]
        g, last, p = (None if t is None else self.state(t) for t in o["sent"])
        c = zero if last is None else last
        of_current, of_threshold, of_tau = [], zero, zero
        unsure = np.zeros(NEURONS, bool)

        def total(*terms):
            """Their sum from the left. Where it cancels, its value is that of roundings."""
            nonlocal unsure
            value, size = terms[0], abs(terms[0])
            for term in terms[1:]:
                value, size = value + term, size + abs(term)
            unsure = unsure | (abs(value) < size * 1e-3)
            return value

        for t in reversed(range(o["steps"])):
            f, shaky = slope_of(o["shape"], self.h[t] - self.theta, S(max(o["gamma"], SINGLE.tiny)), S(o["beta"]))
            unsure |= shaky
            through = zero if g is None else g[t]
            if attached:
                through = total(through, product(c, -self.theta if soft else S(o["reset_value"]) - self.h[t]))
            at_threshold = product(f, through)
            passed_on = c if soft else np.where(self.fired[t], zero, c)
            delta = total(at_threshold, zero if p is None else p[t], passed_on)
            subtracted = np.where(self.fired[t], c, zero) if soft else zero
            of_threshold = total(of_threshold, total(-at_threshold, -subtracted))
            if self.leak is not None:
                pulled = self.before[t] - self.rest - (self.x[t] if o["decay_input"] else zero)
                of_tau = total(of_tau, product(delta, pulled))
            of_current.append(delta if self.leak is None else self.gain * delta)
            c = delta if self.leak is None else self.leak * delta
        gradients = {"current": np.stack(of_current[::-1]), "v0": c, "threshold": of_threshold}
        if o["held"]:
            gradients["current"] = zero
            for part in of_current:
                gradients["current"] = total(gradients["current"], part)
        if self.leak is not None:
            gradients["tau"] = (of_tau.astype(np.float64) / self.tau**2).astype(S)
        self.gradients, self.sure = gradients, ~unsure


def draw(rng: random.Random, **fixed) -> dict[str, Any]:
    """A call's options and tensors. Values of float64 reach as far out in its own range."""
    dtype, wide = fixed["dtype"], fixed["dtype"] == torch.float64
    table = torch.float64 if wide else torch.float32

    def values(pool, *shape, dtype=table):
        drawn = [rng.choice(pool) for _ in range(math.prod(shape))]
        if wide and rng.random() < 0.7:
            drawn = [math.copysign(abs(v) ** 8, v) if 1e9 < abs(v) < INF or 0 < abs(v) < 1e-20 else v for v in drawn]
        return torch.tensor(drawn, dtype=torch.float64).reshape(shape).to(dtype)

    steps, held = rng.choice([1, 2, 3, 5, 17, 20]), rng.random() < 0.2
    current = values(CURRENTS if rng.random() < 0.5 else CURRENTS[:9] * 5 + CURRENTS, steps, NEURONS, dtype=dtype)
    current = current[:1].expand(steps, NEURONS) if held else current
    sent = [
        values(GRADIENTS[:6] * rng.choice([0, 5]) + GRADIENTS, steps, NEURONS, dtype=dtype),
        *(
            values(GRADIENTS[:6] * 5 + GRADIENTS, *size) if rng.random() < 0.6 else None
            for size in ((NEURONS,), (steps, NEURONS))
        ),
    ]
    leaky = rng.random() < 0.7
    return {
        "steps": steps,
        "held": held,
        "current": current,
        "sent": sent,
        "v0": values(CURRENTS, NEURONS) if rng.random() < 0.7 else None,
        "threshold": values(THRESHOLDS, NEURONS) if rng.random() < 0.6 else rng.choice(THRESHOLDS),
        "tau": None
        if not leaky
        else values(TAUS, NEURONS).clamp(min=1 + 2.0**-23)
        if rng.random() < 0.6
        else rng.choice([*TAUS, INF]),
        "decay_input": rng.random() < 0.6,
        "reset_value": 0.0 if fixed["reset"] == "soft" else rng.choice(RESET_VALUES),
        "fire_on_equal": rng.random() < 0.3,
        "gamma": rng.choice(GAMMAS),
        "beta": rng.choice(BETAS),
        **fixed,
    }


def call(module, o, device):
    """Outputs and gradients of a call, the neurons as channels of a batch of one."""

    def leaf(t, batch=-2):
        return t.to(device).detach().clone().unsqueeze(batch).requires_grad_()

    current = leaf(o["current"][0] if o["held"] else o["current"])
    leaves = {"current": current}
    options = {name: o[name] for name in ("reset", "reset_value", "detach_reset", "fire_on_equal")}
    options["surrogate"] = getattr(sf.surrogate, o["shape"])(gamma=o["gamma"], beta=o["beta"])
    if o["held"]:
        options["steps"] = o["steps"]
    for name in ("threshold", "tau"):
        if isinstance(o[name], torch.Tensor):
            leaves[name] = o[name].to(device).detach().clone().requires_grad_()
    if o["v0"] is not None:
        leaves["v0"] = leaf(o["v0"], 0)
    options |= {name: leaves.get(name, o[name]) for name in ("threshold", "tau") if o[name] is not None}
    if o["tau"] is not None:
        options["decay_input"] = o["decay_input"]
    function = getattr(module, "integrate_and_fire" if o["tau"] is None else "leaky_integrate_and_fire")
    outputs = function(current, leaves.get("v0"), return_potential=True, **options)
    sent = [(y, g.to(device).unsqueeze(-2)) for y, g in zip(outputs, o["sent"], strict=True) if g is not None]
    found = torch.autograd.grad([y for y, _ in sent], list(leaves.values()), [g for _, g in sent])
    return (
        [y.detach().cpu().reshape(-1, NEURONS) for y in outputs],
        {name: g.cpu().reshape(-1, NEURONS) for name, g in zip(leaves, found, strict=True)},
    )


def compare(o, outputs, gradients) -> int:
    """Asserts that a call gave what the oracle says; returns how many neurons' gradients were compared."""
    oracle = Oracle(o)
    shown = {name: value for name, value in o.items() if not isinstance(value, torch.Tensor | list)}
    for name, ours, theirs in zip(("spikes", "v_last", "potential"), outputs, oracle.outputs, strict=True):
        wanted = torch.tensor(theirs).reshape(-1, NEURONS).to(ours.dtype)
        torch.testing.assert_close(
            ours, wanted, rtol=0, atol=0, equal_nan=True, msg=lambda m, name=name: f"{name}: {m} {shown}"
        )
    sure = torch.tensor(oracle.sure)
    for name, ours in gradients.items():
        wanted = torch.tensor(oracle.gradients[name]).reshape(-1, NEURONS).to(ours.dtype)
        rtol = {torch.float64: 1e-9, torch.float32: 1e-3}.get(ours.dtype, 2e-2)
        tiny = 1e-300 if ours.dtype == torch.float64 else 1e-7 if ours.dtype == torch.float16 else 1e-36
        torch.testing.assert_close(
            ours[:, sure],
            wanted[:, sure],
            rtol=rtol,
            atol=tiny,
            equal_nan=True,
            msg=lambda m, name=name: f"gradient of {name}: {m} {shown}",
        )
    return int(sure.sum())


resets = pytest.mark.parametrize(
    ("reset", "detach_reset"),
    list(itertools.product(["hard", "soft"], [True, False])),
    ids=["hard, detached", "hard, attached", "soft, detached", "soft, attached"],
)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def cases(reset, detach_reset, dtype):
    rng = random.Random(f"{reset} {detach_reset} {dtype}")
    for shape in SHAPES * 2:
        yield draw(rng, reset=reset, detach_reset=detach_reset, dtype=dtype, shape=shape)


@resets
@dtypes
def test_kernels_are_the_formulas_at_the_ends_of_the_number_range(kernels, reset, detach_reset, dtype):
    compared = sum(compare(o, *call(sf.functional, o, kernels.device)) for o in cases(reset, detach_reset, dtype))
    assert compared > NEURONS * len(SHAPES)  # half: elsewhere the value is one of roundings


@resets
@dtypes
def test_the_reference_is_the_formulas_at_the_ends_of_the_number_range(reset, detach_reset, dtype):
    compared = sum(compare(o, *call(sf.reference, o, torch.device("cpu"))) for o in cases(reset, detach_reset, dtype))
    assert compared > NEURONS * len(SHAPES)
