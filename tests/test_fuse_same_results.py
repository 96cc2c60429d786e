"""Whatever a forward does around a batch norm and a neuron: fusing leaves its results as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from fusing import assert_same, currents, unlike_the_defaults
from torch import nn
from torch.utils.checkpoint import checkpoint

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATOR = torch.Generator()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = sf.OverTime(nn.Conv2d(4, 4, 3, padding=1))
        self.bn = sf.OverTime(nn.BatchNorm2d(4))
        self.sn = sf.IF()
        self.drop = nn.Dropout(0.0)
        self.shift = 0.25
        self.embedding = nn.Parameter(torch.ones(1, 1, 4, 1, 1) / 3)


class AsksForATensor(Block):
    def forward(self, x):
        if isinstance(x, torch.Tensor) and torch.is_tensor(x):
            x = x * 2
        return self.sn(self.bn(self.conv(x)) + x)


class AsksBetween(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.sn(y * 0.5 if isinstance(y, torch.Tensor) else y)


class AsksForGradients(Block):
    def forward(self, x):
        if torch.is_grad_enabled():
            x = x * 2
        return self.sn(self.bn(self.conv(x)) + x)


class AsksAChild(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.sn(y + x if self.drop.training else y)


class DrawsOfItsOwn(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.sn(y + x if torch.rand(1, generator=GENERATOR).item() < 0.5 else y)


class AddsANumber(Block):
    def forward(self, x):
        return self.sn(self.bn(self.conv(x)) + 2 * self.shift)


class AddsWhatIsBroadcast(Block):
    def forward(self, x):
        return self.sn(self.bn(self.conv(x)) + self.embedding * 2)


class AddsBeforeUnflatten(Block):
    def __init__(self) -> None:
        super().__init__()
        self.flat_conv, self.flat_bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        h = self.flat_bn(self.flat_conv(x.flatten(0, 1))) + self.embedding[0]
        return self.sn(h.unflatten(0, x.shape[:2]))


class AddsToWhatIsHeld(AddsBeforeUnflatten):
    def forward(self, x):
        return self.sn(self.flat_bn(self.flat_conv(x[0])) + self.embedding[0], steps=3)


class InLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = []
        for i in range(2):
            stage = (sf.OverTime(nn.Conv2d(4, 4, 3, padding=1)), sf.OverTime(nn.BatchNorm2d(4)), sf.IF())
            for name, layer in zip(("conv", "bn", "sn"), stage, strict=True):
                setattr(self, f"{name}{i}", layer)
            self.stages.append(stage)

    def forward(self, x):
        for conv, bn, sn in self.stages:
            x = sn(bn(conv(x)))
        return x


@pytest.mark.parametrize(
    "kind",
    [
        AsksForATensor,
        AsksBetween,
        AsksForGradients,
        AsksAChild,
        AddsANumber,
        AddsWhatIsBroadcast,
        AddsBeforeUnflatten,
        AddsToWhatIsHeld,
        InLists,
    ],
)
def test_results_stay_as_they_were(kind):
    torch.manual_seed(0)
    model = unlike_the_defaults(kind().double())
    plain = copy.deepcopy(model)
    sf.fuse(model)
    x = currents(3, 2, 4, 5, 5)
    assert_same(model, plain, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


def test_what_can_be_added_is_fused():
    for kind in (AddsWhatIsBroadcast, AddsBeforeUnflatten, AddsToWhatIsHeld):
        assert sf.fuse(kind()).fused, kind


def test_a_forward_with_a_generator_of_its_own_is_left_and_the_generator_where_it_was():
    model = DrawsOfItsOwn()
    before = GENERATOR.get_state()
    assert not sf.fuse(model).fused
    assert torch.equal(GENERATOR.get_state(), before)


def test_a_shortcut_of_another_dtype_is_added_as_before():
    torch.manual_seed(0)
    model = AddsWhatIsBroadcast()
    plain = copy.deepcopy(model)
    assert sf.fuse(model).fused
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = currents(3, 2, 4, 5, 5).float()
        out, wanted = model(x), plain(x)
    assert out.dtype == wanted.dtype
    assert (out != wanted).float().mean() < 0.01  # the normalized current is not rounded to bfloat16 on its way


def test_parameters_keep_their_order_so_that_an_optimizers_state_loads():
    plain = nn.Sequential(sf.OverTime(nn.BatchNorm2d(4)), sf.LIF(learn_tau=True, learn_threshold=True))
    model = copy.deepcopy(plain)
    assert sf.fuse(model).fused
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]


def test_a_checkpointed_layer_counts_batches_as_torchs_does():
    layer, norm = sf.BatchNormIF(4, momentum=None), nn.BatchNorm1d(4, momentum=None)
    for i in range(3):
        x = torch.randn(3, 5, 4, requires_grad=True) + i
        checkpoint(layer, x, use_reentrant=False).sum().backward()
        checkpoint(norm, x.flatten(0, 1), use_reentrant=False).sum().backward()
    assert layer.num_batches_tracked == norm.num_batches_tracked
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)
