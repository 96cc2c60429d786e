"""Modules with a forward of their own are fused inside, and go on being what they were."""

from __future__ import annotations

import copy

import pytest
import torch
from fusing import (
    ADDITIONS,
    FORWARDS,
    HELD,
    Block,
    assert_same,
    block,
    default_currents,
    dropped_shortcut,
    fused_like,
    over_time,
    reason,
    shortcut_computed_in_between,
    two_in_one_forward,
)
from torch import nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_a_batch_norm_before_a_neuron_in_a_forward_is_fused(forward):
    report = fused_like(block(forward), default_currents())
    assert (report.fused[0].residual, report.fused[0].held) == (False, False)


@pytest.mark.parametrize("forward", ADDITIONS.values(), ids=ADDITIONS)
def test_an_addition_between_the_two_is_fused_too(forward):
    model = block(forward)
    report = fused_like(model, default_currents())
    assert report.fused[0].residual
    assert isinstance(model, Block) and model.scale == 0.5


@pytest.mark.parametrize("forward", HELD.values(), ids=HELD)
def test_a_held_current_is_fused_with_its_batch_norm(forward):
    report = fused_like(block(forward), default_currents())
    assert report.fused[0].held


def test_two_batch_norms_that_are_added_give_one_fused_layer_and_a_reason():
    model = block(shortcut_computed_in_between)
    report = fused_like(model, default_currents())
    assert report.fused[0].batch_norm == "bn_over_time.module"
    assert "'bn_over_time.module'" in reason(report, "shortcut.1.module")


def test_several_patterns_in_one_forward_are_all_fused():
    fused_like(block(two_in_one_forward), default_currents(), count=2)


def test_a_module_called_several_times_is_fused_inside():
    inner = block(ADDITIONS["shortcut last"])
    model = block(lambda self, x: self.inner(self.inner(x)), inner=inner)
    fused_like(model, default_currents())


def test_a_forward_without_addition_stays_the_users_own():
    model = block(FORWARDS["keywords"])
    kind = type(model)
    sf.fuse(model)
    assert type(model) is kind


def test_numbers_and_training_mode_still_matter_in_a_rewritten_forward():
    model = block(dropped_shortcut)
    sf.fuse(model)
    assert not torch.equal(model.train()(default_currents()), model.eval()(default_currents()))
    scaled, unscaled = block(ADDITIONS["a scaled shortcut"]), block(ADDITIONS["a scaled shortcut"])
    held = block(HELD["held by an attribute"])
    for network in (scaled, held):
        sf.fuse(network)
    scaled.scale = unscaled.scale = 3.0
    assert_same(scaled, unscaled, default_currents())
    held.steps = 9
    assert held(default_currents()).shape[0] == 9


def test_the_mode_still_matters_where_a_number_decides_what_is_done():
    def forward(self, x):
        shortcut = nn.functional.dropout(x, self.scale, training=self.training) if self.scale else x
        return self.sn(over_time(self, x) + shortcut)

    model, plain = block(forward).eval(), block(forward).eval()
    assert len(sf.fuse(model).fused) == 1
    assert torch.equal(model(default_currents()), plain(default_currents()))
    assert not torch.equal(model.train()(default_currents()), model(default_currents()))
    with pytest.raises(AttributeError, match=r"scale cannot be 0\.0.*before fusing"):
        model.scale = 0.0


def test_a_current_held_for_a_number_of_the_forward_is_fused():
    report = fused_like(block(lambda self, x: self.sn(self.bn(x[0]), steps=x.size(0))), default_currents())
    assert report.fused[0].held


def test_an_attribute_that_decided_the_graph_cannot_change_in_silence():
    def forward(self, x):
        y = over_time(self, x)
        return self.sn(y + x if self.added else y - x)

    model = block(forward)
    sf.fuse(model)
    model.added = True
    with pytest.raises(AttributeError, match=r"added cannot be False.*before fusing"):
        model.added = False


def test_what_was_left_the_first_time_is_fused_the_second_time_when_nothing_hinders_it_any_more():
    def forward(self, x):
        y = self.sn_and_more(self.bn_over_time(x) + x if self.added else x)
        return self.sn(self.bn(self.conv(y.flatten(0, 1))).unflatten(0, (4, 2)) + x)

    model = block(forward)
    plain, kind = copy.deepcopy(model), type(model)
    handle = model.sn.register_forward_hook(lambda *_: None)
    assert [entry.batch_norm for entry in sf.fuse(model).fused] == ["bn_over_time.module"]
    handle.remove()
    assert [entry.batch_norm for entry in sf.fuse(model).fused] == ["bn"]
    assert type(model).__bases__ == (kind,)
    assert_same(copy.deepcopy(model), plain, default_currents())
    with pytest.raises(AttributeError, match="added"):
        model.added = False


def test_another_method_that_adds_between_the_two_by_itself_is_refused():
    model = block(ADDITIONS["shortcut last"])
    sf.fuse(model)
    with pytest.raises(RuntimeError, match=r"bn_over_time\.module.*only that forward"):
        ADDITIONS["shortcut last"](model, default_currents())


def test_a_residual_larger_than_the_current_is_an_error_with_both_shapes():
    model = block(ADDITIONS["shortcut last"])
    model.conv_over_time = sf.OverTime(nn.AdaptiveAvgPool2d(1))
    sf.fuse(model)
    with pytest.raises(ValueError, match=r"residual of shape \[4, 2, 3, 5, 5\].*\[4, 2, 3, 1, 1\]"):
        model(default_currents())
