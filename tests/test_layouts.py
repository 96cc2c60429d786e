"""Any layout of the current's memory gives the results of a contiguous one."""

from __future__ import annotations

import pytest
import torch
from configurations import error
from hypothesis import given, settings
from hypothesis import strategies as st

import snnfast as sf


@st.composite
def views(draw):
    """A recipe for a view: base sizes, the order of its dimensions, a slice of each, and dimensions to expand."""
    dims = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 6), min_size=dims, max_size=dims))
    if draw(st.booleans()):
        sizes[draw(st.integers(0, dims - 1))] = draw(st.sampled_from([16, 17, 19, 33, 64]))
    order = draw(st.permutations(range(dims)))
    slices = []
    for size in sizes:
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        slices.append(slice(start, stop, draw(st.sampled_from([1, 1, 1, 2, 3]))))
    return sizes, order, slices, draw(st.sampled_from([None, None, None, *range(dims)]))


def view_of(recipe, values: torch.Tensor) -> torch.Tensor:
    sizes, order, slices, expanded = recipe
    view = values.view(sizes)[tuple(slices)].permute(order)
    if expanded is not None:
        view = view.narrow(expanded, 0, 1).expand(view.shape)
    return view


@settings(max_examples=250)
@given(
    recipe=views(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    time_dim=st.integers(0, 1),
    steps=st.sampled_from([None, None, 1, 5, 18]),
    leaky=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "reset": st.sampled_from(["hard", "soft"]),
            "fire_on_equal": st.booleans(),
            "delay": st.booleans(),
            "threshold": st.sampled_from([0.0, 0.5, 1.0]),
        }
    ),
    seed=st.integers(0, 1000),
)
def test_any_view_of_any_tensor(kernels, recipe, dtype, time_dim, steps, leaky, options, seed):
    sizes = recipe[0]
    if steps is None and len(sizes) <= time_dim:
        time_dim = 0
    count = torch.Size(sizes).numel()
    # Quarters meet the thresholds exactly.
    values = (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 4).round().div(4).to(dtype)
    x = view_of(recipe, values.to(kernels.device)).detach().requires_grad_()
    name = "leaky_integrate_and_fire" if leaky else "integrate_and_fire"
    found, wanted = (
        getattr(module, name)(x, steps=steps, time_dim=time_dim, return_potential=True, **options)
        for module in (sf.functional, sf.reference)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if dtype in (torch.float32, torch.float64) and wanted[0].requires_grad:
        sent = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(seed)).to(found[0])
        ours, theirs = (torch.autograd.grad(y[0], x, sent)[0] for y in (found, wanted))
        assert error(ours, theirs) <= (1e-5 if dtype == torch.float32 else 1e-12)


def test_spikes_and_gradients_are_written_everywhere_and_nowhere_else(kernels):
    """Neighbours of a view in its base keep their values: a kernel that wrote past its rows would show."""
    base = torch.full((7, 5, 40), 77.0, device=kernels.device)
    x = base[1:6, 1:4, 3:36]
    x.copy_(torch.randn(5, 3, 33, generator=torch.Generator().manual_seed(0)))
    before = base.clone()
    spikes = sf.IF()(x)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(base, before)


@pytest.mark.parametrize("shape", [(5, 0), (3, 0, 4), (8, 5, 0), (3, 2, 0, 4), (4, 2, 3, 0), (1, 0, 0)], ids=str)
@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("call", ["integrate_and_fire", "leaky_integrate_and_fire"])
def test_no_neurons_give_an_empty_result(kernels, call, shape, time_dim):
    if time_dim == 1 and shape[1] == 0:
        shape = (shape[1], shape[0], *shape[2:])
    x = torch.empty(shape, device=kernels.device, requires_grad=True)
    threshold = torch.tensor(1.0, device=kernels.device, requires_grad=True)
    spikes, v_last, potential = getattr(sf.functional, call)(
        x, threshold=threshold, time_dim=time_dim, return_potential=True
    )
    assert spikes.shape == potential.shape == x.shape
    assert v_last.shape == shape[:time_dim] + shape[time_dim + 1 :]
    (spikes.sum() + v_last.sum() + potential.sum()).backward()
    assert x.grad.shape == x.shape and threshold.grad == 0


def test_no_neurons_with_tables_held_and_in_layers():
    tables = torch.tensor([1.5, 2.0, 3.0], requires_grad=True)
    for channels, table in ((3, tables), (0, torch.empty(0, requires_grad=True))):
        x = torch.empty(0, channels, requires_grad=True)
        spikes, _ = sf.functional.leaky_integrate_and_fire(x, steps=20, tau=table, threshold=table)
        assert spikes.shape == (20, 0, channels)
        spikes.sum().backward()
        assert x.grad.shape == x.shape and table.grad.shape == table.shape and table.grad.abs().sum() == 0
    one = torch.tensor(1.5, requires_grad=True)
    for tables in ({"tau": torch.empty(0), "threshold": one}, {"tau": one, "threshold": torch.empty(0)}):
        spikes, _ = sf.functional.leaky_integrate_and_fire(torch.empty(3, 2, 0), reset_value=0.5, **tables)
        assert spikes.shape == (3, 2, 0)
        assert torch.autograd.grad(spikes.sum(), one)[0] == 0
    layer = sf.LIF(learn_tau=True, carry_state=True)
    assert layer(torch.empty(4, 0, 3)).shape == (4, 0, 3) and layer.state.shape == (0, 3)
    layer(torch.empty(4, 0, 3)).sum().backward()
    assert layer.tau_logit.grad == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 0, 3), {}),
        ((4, 5, 0), {}),
        ((4, 5, 0), {"time_dim": 1}),
        ((4, 5, 3, 0), {"reset": "soft"}),
        ((0, 3), {"steps": 4}),
        ((5, 0), {"steps": 4}),
    ],
    ids=str,
)
def test_no_neurons_of_a_batch_norm_give_an_empty_result_and_leave_its_statistics(shape, options, training):
    options = dict(options)
    steps = options.pop("steps", None)
    layer = sf.BatchNormIF(shape[1 if steps else 2], **options).train(training)
    x = torch.empty(shape, requires_grad=True)
    layer(x, steps=steps).sum().backward()
    assert x.grad.shape == shape and layer.weight.grad.abs().sum() == 0
    assert (layer.running_mean == 0).all() and (layer.running_var == 1).all()
