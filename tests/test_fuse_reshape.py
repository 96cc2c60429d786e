"""However a forward folds time and batch for its batch norm and unfolds them for its neuron: fused where exact."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from fusing import (
    CHANNELS,
    Block,
    assert_same,
    block,
    cases,
    currents,
    default_currents,
    fused_like,
    left_like,
    reason,
    unlike_the_defaults,
)
from spikformer import ConvMLP, LinearMLP, Spikformer
from torch import nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")


def spikformer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return unlike_the_defaults(Spikformer(kind).double())


def images() -> torch.Tensor:
    return currents(3, 2, 3, 8, 8)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_every_batch_norm_of_a_spikformer_is_fused(kind):
    model, plain = spikformer(kind), spikformer(kind)
    parameters = dict(model.named_parameters())
    report = fused_like(model, images(), count=15)
    assert not report.left
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    plain.load_state_dict(model.state_dict())
    assert_same(pickle.loads(pickle.dumps(model)), plain, images())


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_fused_spikformer_takes_other_steps_batches_and_sizes_and_compiles(kind):
    model, plain = spikformer(kind).eval(), spikformer(kind).eval()
    assert len(sf.fuse(model).fused) == 15
    with torch.no_grad():
        for shape in ((1, 1, 3, 8, 8), (4, 3, 3, 16, 12), (2, 5, 3, 4, 4)):
            x = currents(*shape)
            torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images()), plain(images()), rtol=0, atol=1e-12)


# One forward each; x is [T, B, C, H, W] and the parts are those of fusing.Block ---------------------------------------


def written_out(self, x):
    T, B, C, H, W = x.shape
    return self.sn(self.bn(self.conv(x.reshape(T * B, C, H, W))).reshape(T, B, C, H, W))


def written_with_minus_one(self, x):
    T, B, C, H, W = x.shape
    return self.sn(self.bn(self.conv(x.view(-1, C, H, W))).view(T, B, C, H, W))


def by_parts_of_the_shape(self, x):
    T, B = x.shape[:2]
    H, W = x.shape[3:]
    return self.sn(self.bn(self.conv(x.flatten(0, 1))).view(T, B, -1, H, W).contiguous())


def pooled(self, x):
    T, B, _, H, W = x.shape
    y = nn.functional.max_pool2d(x.flatten(0, 1), 2)
    return self.sn(self.bn(y).reshape(T, B, -1, H // 2, W // 2))


def tokens(self, x):
    T, B, C, H, W = x.shape
    y = self.bn1d(x.flatten(0, 1).flatten(2))
    return self.sn(y.reshape(T, B, C, H, W))


def tokens_stay(self, x):
    T, B, C = x.shape[:3]
    return self.sn(self.bn1d(x.flatten(0, 1).flatten(2)).contiguous().view(T, B, C, -1))


def channels_last(self, x):
    T, B, C, H, W = x.shape
    y = x.flatten(0, 1).permute(0, 2, 3, 1) * 1  # as a linear layer would give it
    y = self.bn(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return self.sn(y.reshape(T, B, H, W, C)).permute(0, 1, 4, 2, 3)


def turned_after_unflatten(self, x):
    return self.sn(self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(3).transpose(2, 3).contiguous())


def turned_by_names(self, x):
    T, B, C, H, W = x.shape
    y = torch.transpose(self.bn(x.flatten(0, 1)), 2, 3)
    return self.sn(torch.reshape(y, (T, B, C, W, H)))


def channels_mixed(self, x):
    T, B = x.size(0), x.size(1)
    return self.sn(self.bn(self.conv(x.flatten(0, 1))).reshape(T, B, -1))


def two_in_a_row(self, x):
    T, B, C, H, W = x.shape
    x = self.first_sn(self.bn(x.flatten(0, 1)).reshape(T, B, C, H, W)).flatten(0, 1).contiguous()
    return self.sn(self.second_bn(self.conv(x)).reshape(T, B, C, H, W).contiguous())


def viewed_afterwards(self, x):
    T, B, C, H, W = x.shape
    turned = x.flatten(0, 1).flatten(2).transpose(1, 2).contiguous().transpose(1, 2)
    return self.sn(self.bn1d(turned).view(T, B, C, H, W)).view(T, B, C * H * W)


def added(self, x):
    T, B, C, H, W = x.shape
    y = self.bn(self.conv(x.flatten(0, 1))).reshape(T, B, C, H, W).contiguous()
    return self.sn(y + x)


def added_before(self, x):
    T, B, _C, H, W = x.shape
    y = self.bn(self.conv(x.flatten(0, 1))) + x.flatten(0, 1)
    return self.sn(y.contiguous().reshape(T, B, -1, H, W))


def starred(self, x):
    y = self.bn(self.conv(x.flatten(0, 1)))
    return self.sn(y.view(*x.shape[:2], *y.shape[1:]))


def starred_from_the_input(self, x):
    T, B = x.shape[:2]
    return self.sn(self.bn(x.flatten(0, 1)).reshape(T, B, *x.shape[2:]))


def starred_after_the_channels(self, x):
    y = self.bn(self.conv(x.flatten(0, 1)))
    return self.sn(y.reshape(x.size(0), -1, CHANNELS, *x.shape[3:]) + x.new_zeros(*x.shape))


def starred_whole(self, x):
    return self.sn(self.bn(x.flatten(0, 1)).view(*x.shape))


def starred_whole_size(self, x):
    return self.sn(self.bn(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])).view(x.size(0), -1, *x.size()[2:]))


RESHAPES = [
    starred,
    starred_from_the_input,
    starred_after_the_channels,
    starred_whole,
    starred_whole_size,
    written_out,
    written_with_minus_one,
    by_parts_of_the_shape,
    pooled,
    tokens,
    tokens_stay,
    channels_last,
    turned_after_unflatten,
    turned_by_names,
    channels_mixed,
    viewed_afterwards,
    added,
    added_before,
]
OTHERS = {
    "contiguous after OverTime": lambda self, x: self.sn(self.bn_over_time(x).contiguous()),
    "contiguous after OverTime, added": lambda self, x: self.sn((self.bn_over_time(x).contiguous() + x).contiguous()),
    "contiguous, held": lambda self, x: self.sn(self.bn(x[0]).contiguous(), steps=4),
    "contiguous, of a number": lambda self, x: self.sn((self.bn_over_time(x) + self.scale * 2).contiguous()),
}


def with_more(forward, **attributes) -> nn.Module:
    more = {"bn1d": nn.BatchNorm1d(CHANNELS), "second_bn": nn.BatchNorm2d(CHANNELS), "first_sn": sf.IF()}
    return unlike_the_defaults(block(forward, **more, **attributes).double())


@pytest.mark.parametrize("forward", RESHAPES, ids=lambda forward: forward.__name__)
def test_a_batch_norm_is_found_however_time_and_batch_are_unfolded(forward):
    fused_like(with_more(forward), default_currents())


@pytest.mark.parametrize("forward", OTHERS.values(), ids=OTHERS)
def test_contiguous_between_the_two_hinders_nothing(forward):
    fused_like(with_more(forward), default_currents())


def test_the_sizes_of_one_unfolding_hold_for_the_next():
    fused_like(with_more(two_in_a_row), default_currents(), count=2)


def two_with_an_addition(self, x):
    T, B, C, H, W = x.shape
    y = self.bn(x.flatten(0, 1)).reshape(T, B, C, H, W) + x
    x = self.first_sn(y).flatten(0, 1).contiguous()
    return self.sn(self.second_bn(self.conv(x)).reshape(T, B, -1, H, W).contiguous())


@pytest.mark.parametrize("forward", [two_in_a_row, two_with_an_addition])
def test_fusing_a_forward_again_finds_what_was_hindered_before(forward):
    model = with_more(forward)
    plain = copy.deepcopy(model)
    handle = model.sn.register_forward_hook(lambda *_: None)
    assert [entry.batch_norm for entry in sf.fuse(model).fused] == ["bn"]
    handle.remove()
    assert [entry.batch_norm for entry in sf.fuse(model).fused] == ["second_bn"]
    assert_same(model, plain, default_currents())


def guessed(self, x):
    return self.sn(self.bn(self.conv(x.flatten(0, 1))).reshape(4, 2, -1, 5, 5))


def given(self, x, T=4, B=2):
    return self.sn(self.bn(self.conv(x.flatten(0, 1))).reshape(T, B, -1, 5, 5))


def of_another(self, x):
    T, B = x.flatten(3).shape[:2]
    return self.sn(self.bn(x.flatten(0, 1)).reshape(T * 2, B // 2, -1, 5, 5))


def batch_turned(self, x):
    T, B, C, H, W = x.shape
    return self.sn(self.bn(x.flatten(0, 1)).transpose(0, 1).reshape(T, B, C, H, W))


def turned_by_an_unknown_rank(self, x):
    T, B = x.shape[:2]
    return self.sn(self.bn1d(x.flatten(0, 1).flatten(2)).transpose(-1, -2).reshape(T, B, -1, 3))


def shape_changed_in_place(self, x):
    T, B, _C, H, W = x.shape
    z = x * 1
    z.transpose_(0, 1)
    return self.sn(self.bn(x.flatten(0, 1)).reshape(T, B, -1, H, W))


def held_and_turned(self, x):
    return self.sn(self.bn(x[0]).transpose(2, 3), steps=4)


def rectified(self, x):
    T, B, C, H, W = x.shape
    return self.sn(self.bn(x.flatten(0, 1)).relu().reshape(T, B, C, H, W))


def used_twice(self, x):
    T, B, C, H, W = x.shape
    y = self.bn(x.flatten(0, 1)).reshape(T, B, C, H, W)
    return self.sn(y.contiguous()) + y


def added_to_what_is_turned(self, x):
    T, B, C, H, W = x.shape
    return self.sn(self.bn(x.flatten(0, 1)).transpose(2, 3).reshape(T, B, C, W, H) + x.transpose(3, 4))


@pytest.mark.parametrize(
    ("forward", "words"),
    cases(
        {
            "numbers": (guessed, "write unflatten(0, (T, B))"),
            "arguments": (given, "write unflatten(0, (T, B))"),
            "computed": (of_another, "write unflatten(0, (T, B))"),
            "the batch turned": (batch_turned, "goes to 'transpose'"),
            "turned, of an unknown rank": (turned_by_an_unknown_rank, "goes to 'transpose'"),
            "a shape changed in place": (shape_changed_in_place, "write unflatten(0, (T, B))"),
            "held": (held_and_turned, "'transpose' rearranges its output"),
            "a ReLU": (rectified, "goes to 'relu'"),
            "used at two places": (used_twice, "used at 2 places"),
            "added to what is turned": (added_to_what_is_turned, "the addition comes after dimensions were rearranged"),
        }
    ),
)
def test_what_is_not_certain_to_unfold_time_and_batch_is_left_and_named(forward, words):
    model = with_more(forward)
    report = left_like(model, default_currents())
    assert any(words in reason(report, name) for name in ("bn", "bn1d"))


NEURONS = {
    "a threshold per channel": (lambda: sf.LIF(threshold=torch.rand(6) + 0.5), "per channel"),
    "a learned threshold per channel": (lambda: sf.IF(torch.rand(6) + 0.5, learn_threshold=True), "per channel"),
    "time constants per channel": (lambda: sf.LIF(torch.rand(6) + 2), "per channel"),
    "carried state": (lambda: sf.LIF(carry_state=True), "a carried state"),
}


@pytest.mark.parametrize(("neuron", "words"), cases(NEURONS))
def test_a_neuron_with_values_per_channel_goes_with_the_batch_norms_channels_only(neuron, words):
    torch.manual_seed(0)
    conv = unlike_the_defaults(ConvMLP(6, 6)).double()
    linear = unlike_the_defaults(LinearMLP(6, 6)).double()
    for model in (conv, linear):
        model.fc1_lif = neuron().double()
    x = currents(3, 2, 6, 6)
    report = sf.fuse(copy.deepcopy(linear))
    assert [entry.batch_norm for entry in report.fused] == ["fc2_bn"] and words in reason(report, "fc1_bn")
    for model, count in ((conv, 2), (linear, 1)):
        plain = copy.deepcopy(model)
        assert len(sf.fuse(model).fused) == count
        for _ in range(2):  # the second time with the state of the first
            out, wanted = model(x), plain(x)
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
            assert wanted.any()


def test_a_neuron_learned_as_a_whole_is_fused_across_turned_dimensions():
    torch.manual_seed(0)
    options = {"threshold": 0.7, "learn_threshold": True, "learn_tau": True}
    model = LinearMLP(6, 6)
    model.fc1_lif = sf.LIF(3.0, **options)
    fused_like(unlike_the_defaults(model).double(), currents(3, 2, 6, 6), count=2)


def test_after_fusing_values_per_channel_cannot_be_set_where_the_channels_are_others():
    model = LinearMLP(6, 6)
    sf.fuse(model)
    model.fc1_lif.threshold = 0.5
    assert model.fc1_bn.threshold == 0.5
    with pytest.raises(ValueError, match=r"threshold .*\[6\].*per channel.*fc1_bn"):
        model.fc1_lif.threshold = torch.rand(6)
    conv = ConvMLP(6, 6)
    sf.fuse(conv)
    conv.fc1_lif.threshold = torch.full((6,), 0.5)
    assert torch.equal(conv.fc1_bn.threshold, torch.full((6,), 0.5))


def test_the_blocks_class_of_a_rewritten_forward_is_the_users_own_below():
    model = with_more(written_out)
    sf.fuse(model)
    assert isinstance(model, Block)


WRITTEN = """
x.flatten()
x.flatten(0)
x.flatten(end_dim=1)
x.flatten(-2, -1)
x.flatten(start_dim=0, end_dim=1)
torch.flatten(input=x, start_dim=0, end_dim=1)
torch.flatten(x)
x.mean().view(())
x.mean().reshape([])
x.reshape(shape=(4, -1))
x.view(x.dtype)
x.view(size=(4, -1))
x.view([x.shape[0], -1])
x.view(-1)
x.permute(dims=(0, 2, 1, 3, 4))
x.permute((0, -1, 1, 2, 3))
x.transpose(dim0=0, dim1=1)
x.T
x.mT
x.transpose(0, x.dim() - 1)
x.permute(*range(5))
torch.transpose(input=x, dim0=0, dim1=1)
x.swapaxes(0, -1)
x.unflatten(dim=0, sizes=(2, 2))
torch.unflatten(x, 0, (2, -1))
x.unflatten(-1, (5, 1))
torch.unflatten(input=x, dim=0, sizes=(2, 2))
x.unflatten(0, [2, 2])
x.unflatten(0, (1, 2, 2))
x.reshape(x.size(dim=0), -1)
x.reshape(x.shape[-5], -1)
x.reshape(x.shape[:2] + (-1,))
x[0, :]
x[None]
x.reshape(*x.shape[:2], -1)
x.reshape(x.shape[::2][0], -1)
x.view(*x.shape[1:], -1)
2 * x
x + 1
x - x
x.view(*x.shape, 1)
x.reshape(-1, *x.shape[4:])
x.contiguous(memory_format=torch.contiguous_format)
x.view_as(other=x)
nn.functional.max_pool2d(x[0], kernel_size=2)
sum([x, x])
self.split(x[:, 0].tile(2, 1, 1, 1))
torch.reshape(input=x, shape=(4, -1))
x.view(4, -1).view(x.shape)
x.expand(*x.shape)
x.repeat(*x.shape[:1], 1, 1, 1, 1)
""".strip().splitlines()


@pytest.mark.parametrize("written", WRITTEN)
def test_no_way_to_write_a_reshape_confuses_the_rest_of_a_forward(written):
    space = {"torch": torch, "nn": nn}
    exec(
        f"""def forward(self, x):
    T, B, C, H, W = x.shape
    y = self.bn(self.conv(x.flatten(0, 1))).reshape(T, B, C, H, W)
    z = {written}
    return self.sn(y) + z.mean()""",
        space,
    )
    try:
        block(space["forward"])(default_currents())
    except Exception as error:
        pytest.fail(f"the forward itself fails: {error}")
    model, plain = block(space["forward"]), block(space["forward"])
    report = sf.fuse(model)
    assert report.fused or "cannot be traced" in reason(report, "bn")
    x = default_currents()
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-10)


def test_a_forward_of_a_thousand_steps_is_followed_to_its_end():
    def forward(self, x):
        T, B, _, H, W = x.shape
        y = x.flatten(0, 1)
        for _ in range(1000):
            y = (y + y).contiguous() * 0.5
        return self.sn(self.bn(y).reshape(T, B, -1, H, W))

    model = block(forward)
    assert len(sf.fuse(model).fused) == 1
