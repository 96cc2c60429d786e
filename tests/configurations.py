"""Random configurations of the neuron: every option, layout and dtype, drawn so that every pair of options occurs."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import torch

import snnfast as sf
from snnfast.dynamics import make_dynamics
from snnfast.reference import loop

SURROGATES = list(sf.surrogate.SHAPES)

# The first value of each is the plainest: a case's id leaves it out, and hypothesis shrinks towards it.
OPTIONS: dict[str, list[Any]] = {
    "dtype": [torch.float32, torch.float64, torch.float16, torch.bfloat16],
    "neuron": ["IF", "LIF", "LIF, current not decayed"],
    "reset": ["hard", "soft"],
    "reset_value": [0.0, 0.25],
    "detach_reset": [None, True, False],
    "fire_on_equal": [False, True],
    "delay": [False, True],
    "surrogate": SURROGATES,
    "threshold": ["number", "0-d", "per channel"],
    "tau": ["number", "0-d", "per channel"],
    "v0": [False, True],
    "held": [False, True],
    "time_dim": [0, 1],
    "steps": [1, 2, 4, 7, 16, 17, 35],
    "sizes": [(2, 16), (3, 5), (2, 3, 4, 2), (1, 4, 2, 8), (5, 1, 3), (2, 2, 3, 2, 5)],
    "layout": [
        "contiguous",
        "channels last",
        "batch sliced",
        "time sliced",
        "channels sliced",
        "batch expanded",
        "time expanded",
        "time innermost",
        "every second column",
        "offset by one element",
    ],
    "gradient": ["like spikes", "expanded", "other layout", "none"],
    "outputs": ["spikes", "spikes and v_last", "all"],
    "currents": ["smooth", "on a grid that meets the threshold"],
}

# Pairs that no call can have.
IMPOSSIBLE = {
    frozenset([("reset", "soft"), ("reset_value", 0.25)]),
    frozenset([("neuron", "IF"), ("tau", "0-d")]),
    frozenset([("neuron", "IF"), ("tau", "per channel")]),
    frozenset([("held", True), ("layout", "time sliced")]),
    frozenset([("held", True), ("layout", "time expanded")]),
    frozenset([("held", True), ("layout", "time innermost")]),
    frozenset([("outputs", "spikes"), ("gradient", "none")]),
}


def possible(options: dict[str, Any]) -> bool:
    return not any(frozenset(pair) in IMPOSSIBLE for pair in itertools.combinations(options.items(), 2))


def draw(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    drawn = []
    while len(drawn) < count:
        options = {name: rng.choice(values) for name, values in OPTIONS.items()}
        if possible(options):
            drawn.append({**options, "seed": len(drawn)})
    return drawn


CONFIGURATIONS = draw(2400, seed=20200611)


@dataclass
class Case:
    """The tensors and keyword arguments of one configuration."""

    options: dict[str, Any]
    current: torch.Tensor
    v0: torch.Tensor | None
    function: str
    arguments: dict[str, Any]
    tables: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        found = {"current": self.current, **self.tables}
        if self.v0 is not None:
            found["v0"] = self.v0
        return {name: leaf for name, leaf in found.items() if leaf.requires_grad}


def laid_out(values: torch.Tensor, layout: str, time_dim: int | None) -> torch.Tensor:
    """The values with another memory layout (an expanded dimension repeats its first entry)."""
    batch = 0 if time_dim is None else 1 - time_dim
    channel = batch + 1 if time_dim is None else 2
    if layout == "channels last":
        return values.movedim(channel, -1).contiguous().movedim(-1, channel)
    if layout in ("batch sliced", "time sliced", "channels sliced"):
        dim = {"batch sliced": batch, "time sliced": time_dim, "channels sliced": channel}[layout]
        wide = torch.full([2 * n + 1 if d == dim else n for d, n in enumerate(values.shape)], 77.0).to(values)
        view = wide.narrow(dim, 1, values.shape[dim])
        if layout == "time sliced":
            view = wide[(slice(None),) * dim + (slice(1, None, 2),)]
        return view.copy_(values)
    if layout in ("batch expanded", "time expanded"):
        dim = batch if layout == "batch expanded" else time_dim
        return values.narrow(dim, 0, 1).expand(values.shape)
    if layout == "time innermost":
        return values.movedim(time_dim, -1).contiguous().movedim(-1, time_dim)
    if layout == "every second column":
        wide = torch.full([*values.shape[:-1], 2 * values.shape[-1]], 77.0).to(values)
        return wide[..., ::2].copy_(values)
    if layout == "offset by one element":
        flat = torch.full([values.numel() + 1], 77.0).to(values)
        return flat[1:].view(values.shape).copy_(values)
    return values.contiguous()


def make_case(options: dict[str, Any], device: torch.device, dtype: torch.dtype | None = None) -> Case:
    """``dtype``: use this one instead of the configuration's, with the same values."""
    o = options
    rng = torch.Generator().manual_seed(o["seed"])

    def normal(shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    sizes, steps, time_dim = list(o["sizes"]), o["steps"], o["time_dim"]
    shape = sizes if o["held"] else [*sizes[:time_dim], steps, *sizes[time_dim:]]
    values = normal(shape)
    if o["currents"] == "on a grid that meets the threshold":
        values = (values * 4).round() / 4
    # Once through the configuration's own dtype: other dtypes then see the very same numbers.
    values = values.to(o["dtype"]).to(dtype or o["dtype"]).to(device)
    current = laid_out(values, o["layout"], None if o["held"] else time_dim).detach().requires_grad_()

    arguments: dict[str, Any] = {
        name: o[name] for name in ("reset", "reset_value", "detach_reset", "fire_on_equal", "delay", "time_dim")
    }
    gamma, beta = (float(x) for x in torch.rand(2, generator=rng) * 3 + 0.2)
    arguments["surrogate"] = getattr(sf.surrogate, o["surrogate"])(gamma=gamma, beta=beta)
    arguments["return_potential"] = True
    if o["held"]:
        arguments["steps"] = steps
    table_dtype = torch.float64 if (dtype or o["dtype"]) == torch.float64 else torch.float32
    tables = {}
    for name, lowest in (("threshold", 0.5), ("tau", 1.5)):
        count = {"number": 1, "0-d": 1, "per channel": sizes[1]}[o[name]]
        table = (torch.rand(count, generator=rng) * 4).round() / 4 + lowest
        if name == "tau" and o["neuron"] == "IF":
            continue
        if o[name] == "number":
            arguments[name] = float(table)
        else:
            table = table if o[name] == "per channel" else table.squeeze(0)
            tables[name] = arguments[name] = table.to(device, table_dtype).requires_grad_()
    function = "integrate_and_fire"
    if o["neuron"] != "IF":
        function = "leaky_integrate_and_fire"
        arguments["decay_input"] = o["neuron"] == "LIF"
    v0 = (normal(sizes).float() / 2).to(device, table_dtype).requires_grad_() if o["v0"] else None
    return Case(o, current, v0, function, arguments, tables)


def output_gradients(outputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Gradients for (spikes, v_last, potential), None where nobody sends one; equal in value for every dtype."""
    rng = torch.Generator().manual_seed(options["seed"] + 1)
    spikes, v_last, potential = outputs
    g_spikes = torch.randn(spikes.shape, generator=rng).bfloat16().to(spikes.device, spikes.dtype)
    if options["gradient"] == "expanded":
        g_spikes = g_spikes.reshape(-1)[:1].view([1] * spikes.dim()).expand(spikes.shape)
    elif options["gradient"] == "other layout":
        g_spikes = g_spikes.movedim(0, -1).contiguous().movedim(-1, 0)
    elif options["gradient"] == "none":
        g_spikes = None
    else:
        g_spikes = torch.empty_like(spikes).copy_(g_spikes)
    g_last = torch.randn(v_last.shape, generator=rng).to(v_last) if options["outputs"] != "spikes" else None
    g_potential = torch.randn(potential.shape, generator=rng).to(potential) if options["outputs"] == "all" else None
    return g_spikes, g_last, g_potential


def run(case: Case, module: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Outputs and gradients of a case through sf.functional or sf.reference."""
    outputs = getattr(module, case.function)(case.current, case.v0, **case.arguments)
    leaves = case.leaves
    found = gradients_of(outputs, output_gradients(outputs, case.options), list(leaves.values()))
    return outputs, dict(zip(leaves, found, strict=True))


def gradients_of(outputs: Any, sent: Any, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """torch.autograd.grad, with zeros where nothing flows: the only spike of a delayed single step is a constant."""
    flowing = [(y, g) for y, g in zip(outputs, sent, strict=True) if g is not None and y.requires_grad]
    if not flowing:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad([y for y, _ in flowing], leaves, [g for _, g in flowing], allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def table_gradients_in_float64(case: Case) -> dict[str, torch.Tensor]:
    """Gradients of threshold and tau by the formulas of MATH.md section 3: the terms of every neuron and step from the
    reference loop, in the state's dtype, summed in float64."""
    o, arguments = case.options, dict(case.arguments)
    time_dim, steps, sizes = o["time_dim"], o["steps"], list(o["sizes"])
    state = torch.float64 if case.current.dtype == torch.float64 else torch.float32

    def wide(table):
        """A number or table as float64, broadcasting against one step."""
        table = torch.as_tensor(table, device=case.current.device).detach().double()
        return table.view(-1, *[1] * (len(sizes) - 2)) if table.dim() == 1 else table

    # One threshold per neuron: its gradient is then that neuron's sum over time.
    threshold = wide(arguments["threshold"]).expand(sizes).to(state).clone().requires_grad_()
    tau = wide(arguments["tau"]) if "tau" in arguments else None
    current = case.current.detach().to(state)
    if o["held"]:
        current = current.unsqueeze(time_dim).expand(*sizes[:time_dim], steps, *sizes[time_dim:])
    current = current.clone().requires_grad_()
    options = {k: v for k, v in arguments.items() if k not in ("time_dim", "steps", "return_potential")}
    dynamics = make_dynamics("test", **options)
    v0 = None if case.v0 is None else case.v0.detach()
    outputs = loop(dynamics, current, v0, threshold, tau, None, time_dim)
    grad_threshold, grad_current = gradients_of(outputs, output_gradients(outputs, o), [threshold, current])
    neurons = {"threshold": grad_threshold.double()}
    if "tau" in case.tables:
        h, at = outputs[2].detach(), threshold.detach().unsqueeze(time_dim)
        fired = h >= at if o["fire_on_equal"] else h > at
        v = torch.where(fired, h - at if o["reset"] == "soft" else torch.tensor(o["reset_value"]).to(h), h)
        rest = 0.0 if o["reset"] == "soft" else o["reset_value"]
        start = torch.full_like(v.select(time_dim, 0), rest) if v0 is None else v0.to(state)
        before = torch.cat([start.unsqueeze(time_dim), v.narrow(time_dim, 0, steps - 1)], time_dim).double()
        decays = o["neuron"] == "LIF"
        gain = (1 / tau).to(state).double() if decays else 1.0
        delta = grad_current.double() / gain
        pulled = before - rest - (current.detach().double() if decays else 0.0)
        neurons["tau"] = (delta * pulled).sum(time_dim) / tau**2
    dims = [d for d in range(len(sizes)) if d != 1]
    return {
        name: neurons[name].sum() if table.dim() == 0 else neurons[name].sum(dims)
        for name, table in case.tables.items()
    }


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    if expected.numel() == 0:
        return 0.0
    difference = (found.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    return difference / scale if scale > 0 else difference
