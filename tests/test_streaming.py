"""A network trained on whole sequences gives, one step at a time, what it gives of the whole; or says why it cannot."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import snnfast as sf
from snnfast import models

pytestmark = pytest.mark.usefixtures("one_thread")
T, B = 6, 2


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(network: nn.Module) -> nn.Module:
    """The network with batch norms that are not those at the start, and currents that make its neurons fire."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.3, 2.0),
                    (module.weight, 0.8, 2.0),
                    (module.bias, 0.0, 0.8),
                ):
                    tensor.uniform_(low, high, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0.0, 1.5 * module.weight[0].numel() ** -0.5, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(0.0, 0.3, generator=generator)
    return network


def conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class Residual(nn.Module):
    """A shortcut added as a fused layer's residual, and another one after a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.project = (sf.OverTime(conv(3, 4)), sf.OverTime(conv(4, 4)), conv(3, 4))
        self.neuron1, self.neuron2 = sf.BatchNormIF(4), sf.BatchNormLIF(4, tau=3.0, reset="soft")
        self.norm = sf.OverTime(nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.norm(self.project(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return self.neuron2(self.conv2(self.neuron1(self.conv1(x))), shortcut)


class Written(nn.Module):
    """Time folded and unfolded by the forward itself, as other libraries' networks do it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.sn, self.linear = conv(3, 4), nn.BatchNorm2d(4), sf.LIF(3.0, 0.4), nn.Linear(4, 5)
        self.bn2, self.sn2 = nn.BatchNorm1d(5), sf.IF(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, batch = x.shape[:2]
        currents = self.bn(self.conv(x.flatten(0, 1))).reshape(steps, batch, 4, *x.shape[3:])
        spikes = self.sn(currents).mean((-1, -2))
        return self.sn2(self.bn2(self.linear(spikes).flatten(0, 1)).view(steps, batch, -1))


def sequential(time_dim: int = 0, **options: object) -> nn.Sequential:
    return nn.Sequential(
        sf.OverTime(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))),
        sf.LIF(3.0, 0.4, time_dim=time_dim, **options),
        sf.OverTime(nn.MaxPool2d(2)),
        sf.OverTime(conv(4, 4)),
        sf.OverTime(nn.BatchNorm2d(4)),
        sf.IF(torch.tensor([0.5, 0.7, 0.9, 1.1]), reset="soft", time_dim=time_dim, **options),
        sf.OverTime(nn.Flatten()),
        sf.OverTime(nn.Dropout()),
    )


def fused(network: nn.Module) -> nn.Module:
    assert sf.fuse(network).fused
    return network


NETWORKS = {
    "IF": lambda: sf.IF(0.7),
    "LIF that learns": lambda: sf.LIF(torch.tensor([1.5, 2.0, 5.0]), 0.3, learn_tau=True, learn_threshold=True),
    "BatchNormIF": lambda: sf.BatchNormIF(3),
    "BatchNormLIF": lambda: sf.BatchNormLIF(3, tau=torch.tensor([1.5, 2.0, 5.0]), learn_tau=True),
    "convolution and BatchNormLIF": lambda: nn.Sequential(
        sf.OverTime(conv(3, 4)), sf.BatchNormLIF(4, tau=3.0, decay_input=False, reset_value=-0.2, learn_tau=True)
    ),
    "sequential": sequential,
    "sequential, fused": lambda: fused(sequential()),
    "sequential, delayed": lambda: sequential(delay=True),
    "sequential, delayed and fused": lambda: fused(sequential(delay=True)),
    "sequential, carrying already": lambda: sequential(carry_state=True),
    "sequential, batch first": lambda: sequential(time_dim=1),
    "batch first, delayed": lambda: sequential(time_dim=1, delay=True),
    "residual": Residual,
    "written": Written,
    "written, fused": lambda: fused(Written()),
    **{
        f"readout, {mode}": lambda mode=mode: nn.Sequential(
            *sequential(delay=mode == "mean"), sf.OverTime(nn.Linear(64, 5)), sf.Readout(mode)
        )
        for mode in ("sum", "mean")
    },
    "readout, batch first": lambda: nn.Sequential(*sequential(time_dim=1), sf.Readout("mean", time_dim=1)),
}
FOLDED = {
    "convolution and BatchNormLIF": ("1",),
    "sequential": ("0.module.1", "4.module"),
    "sequential, fused": ("0.module.1", "4.module"),
    "sequential, delayed": ("0.module.1", "4.module"),
    "sequential, delayed and fused": ("0.module.1", "4.module"),
    "residual": ("norm.module", "neuron1", "neuron2"),
    "written": ("bn", "bn2"),
    "written, fused": ("bn", "bn2"),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def whole_and_stream(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, sf.Stream]:
    """A sequence, what the network makes of it at once, and its stream."""
    network = trained(NETWORKS[name]()).to(dtype)
    time_dim = 1 if "batch first" in name else 0
    x = drawn(T, B, 3, 8, 8, dtype=dtype).transpose(0, time_dim)
    stream = sf.streaming(network, x)
    with torch.no_grad():
        sf.reset_state(network)
        return x, network.eval()(x), stream


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Spikes are equal, logits to rounding."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if ((wanted == 0) | (wanted == 1)).all():
        assert 0.02 < wanted.double().mean() < 0.98, "spikes that say nothing"
        assert torch.equal(found, wanted)
    else:
        tolerance = 1e-12 if wanted.dtype == torch.float64 else 1e-5
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@networks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_and_chunks_make_what_the_whole_sequence_makes(name, dtype):
    x, wanted, stream = whole_and_stream(name, dtype)
    steps = [stream(step) for step in x.unbind(stream.time_dim)]
    assert_same(torch.stack(steps, stream.time_dim) if stream.over_time else steps[-1], wanted)
    for sizes in ((T,), (1, 2, 3)):
        stream.reset()
        chunks = [stream.chunk(chunk) for chunk in x.split(sizes, stream.time_dim)]
        assert_same(torch.cat(chunks, stream.time_dim) if stream.over_time else chunks[-1], wanted)


@pytest.mark.parametrize("name", FOLDED)
def test_batch_norms_behind_linear_maps_are_folded(name):
    _, _, stream = whole_and_stream(name, torch.float32)
    assert set(stream.folded) == set(FOLDED[name])
    assert not any(isinstance(module, _BatchNorm) for module in stream.modules())


class Uses(nn.Module):
    """A convolution whose output is used as ``how`` says, ahead of a batch norm."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.bn, self.sn = how, conv(3, 3), nn.BatchNorm2d(3), sf.IF(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.flatten(0, 1))
        match self.how:
            case "also elsewhere":
                return self.sn((self.bn(y) + y).unflatten(0, x.shape[:2]))
            case "changed in place":
                y += 1
            case "changed":
                y = y * 2
            case "channels turned":
                return self.sn(self.bn(y[:, :, :3].transpose(1, 2)).unflatten(0, x.shape[:2]))
            case "called twice":
                return self.sn((self.bn(y) + self.bn(self.conv(y))).unflatten(0, x.shape[:2]))
            case "returned too":
                self.sn(self.bn(y).unflatten(0, x.shape[:2]))
                return y.unflatten(0, x.shape[:2])
        return self.sn(self.bn(y).unflatten(0, x.shape[:2]))


@pytest.mark.parametrize(
    "how", ["also elsewhere", "changed in place", "changed", "channels turned", "called twice", "returned too"]
)
def test_a_batch_norm_that_folding_would_falsify_stays(how):
    network, x = trained(Uses(how)).eval(), drawn(T, B, 3, 8, 8)
    stream = sf.streaming(network, x)
    assert stream.folded == ()
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([stream(step) for step in x]), network(x))


def test_a_batch_norm_with_a_hook_and_one_in_half_precision_stay():
    hooked = trained(Uses("alone"))
    hooked.bn.register_forward_hook(lambda *_: None)
    assert sf.streaming(hooked, drawn(T, B, 3, 8, 8)).folded == ()
    half = trained(Uses("alone")).bfloat16()
    stream = sf.streaming(half, drawn(T, B, 3, 8, 8, dtype=torch.bfloat16))
    assert stream.folded == () and stream(drawn(B, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert sf.streaming(trained(Uses("alone")), drawn(T, B, 3, 8, 8)).folded == ("bn",)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_named_networks_take_their_image_at_each_step(name, batch_norm):
    options = {"width": 4} if models.takes(name, "width") else {}
    options |= {"image_size": 16} if models.takes(name, "image_size") else {}
    options |= {"batch_norm": batch_norm} if models.takes(name, "batch_norm") else {}
    network = trained(models.build(name, in_channels=2, activation="lif", threshold=0.3, **options).double()).eval()
    images = drawn(B, 2, 16, 16, dtype=torch.float64).abs()
    stream = sf.streaming(network, images)
    with torch.no_grad():
        wanted = [network(images, steps) for steps in range(1, 8)]
        assert len({logits[0, 0].item() for logits in wanted}) > 3
        for logits in wanted:
            assert_same(stream(images), logits)
        stream.reset()
        assert_same(stream.chunk(images, 3), wanted[2])
        assert_same(stream.chunk(images, 4), wanted[6])
    assert stream.held and (not batch_norm or name == "digits" or stream.folded)


def test_a_held_networks_steps_may_be_other_images():
    network = trained(models.digits(threshold=0.3)).eval()
    first, second = drawn(B, 1, 8, 8), drawn(B, 1, 8, 8, seed=4)
    stream = sf.streaming(network, first)
    stream(first)
    found = stream(second)
    with torch.no_grad():
        spikes = sf.IF(0.3, reset="soft")(torch.stack([network.stem(first), network.stem(second)]))
        spikes = network.neuron3(network.hidden(network.neuron2(network.conv(spikes))))
        assert_same(found, network.classifier(spikes.sum(0), 2))


def test_reset_begins_a_sequence_of_any_batch_size():
    network, x = trained(nn.Sequential(*sequential(delay=True), sf.Readout())).eval(), drawn(T, 5, 3, 8, 8)
    stream = sf.streaming(network, x[:, :2])
    stream.chunk(x[:, :2])
    with pytest.raises(ValueError, match=r"shape \[2, 3, 8, 8\] with which .*\[5, 3, 8, 8\].*reset\(\)"):
        stream(x[0])
    for reset in (stream.reset, lambda: sf.reset_state(stream)):
        reset()
        with torch.no_grad():
            assert_same(stream.chunk(x), network(x))
    assert sf.reset_state(stream) == 5  # two neurons, their spikes that wait, the readout


def test_a_call_that_raises_leaves_the_states_as_they_were():
    network, x = trained(sequential()).eval(), drawn(T, B, 3, 8, 8)
    stream = sf.streaming(network, x)
    first = stream.chunk(x[:3])

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    handle = stream.model[-1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        stream(x[3])
    handle.remove()
    with torch.no_grad():
        assert_same(torch.cat([first, stream.chunk(x[3:])]), network(x))


def test_the_model_is_left_as_it_was_and_shares_nothing_with_its_stream():
    network, x = trained(sequential(carry_state=True)).train(), drawn(T, B, 3, 8, 8)
    network[1](x[:, :, :, :1].repeat(1, 1, 1, 4, 1))
    state, values = network[1].state, copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    stream = sf.streaming(network, x)
    wanted = stream.chunk(x)
    assert torch.equal(random, torch.get_rng_state())
    assert network.training and network[1].state is state and network[1].carry_state
    assert all(torch.equal(tensor, values[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    stream.reset()
    assert torch.equal(stream.chunk(x), wanted)
    kept = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    assert not kept & {tensor.untyped_storage().data_ptr() for tensor in stream.state_dict().values()}


def through_a_file(stream: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(stream, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), through_a_file])
@pytest.mark.parametrize("name", ["sequential, delayed and fused", "readout, mean", "residual"])
def test_a_copy_goes_on_where_its_stream_was(name, duplicate):
    x, wanted, stream = whole_and_stream(name, torch.float32)
    first = stream.chunk(x[:2])
    other = duplicate(stream)
    stream.reset()
    rest = other.chunk(x[2:])
    assert_same(torch.cat([first, rest]) if stream.over_time else rest, wanted)


def test_a_stream_keeps_no_graph_and_no_mode_but_evaluation():
    _, _, stream = whole_and_stream("readout, sum", torch.float32)
    x = drawn(B, 3, 8, 8).requires_grad_()
    assert not stream.train()(x).requires_grad
    assert not any(module.training for module in stream.modules())
    assert not any(parameter.requires_grad for parameter in stream.parameters())


def test_a_stream_follows_to_another_dtype():
    x, wanted, _ = whole_and_stream("readout, mean", torch.float64)
    stream = whole_and_stream("readout, mean", torch.float32)[2].double()
    found = stream.chunk(x)
    assert found.dtype == torch.float64 and (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_readout_counts_beyond_what_float32_can():
    stream = sf.streaming(nn.Sequential(sf.IF(), sf.Readout()), drawn(T, B, 3))
    stream(torch.full((B, 3), 2.0))
    readout = stream.model[1]
    readout._state = (readout._state[0] + 2.0**24, 2**24)
    assert (stream(torch.full((B, 3), 2.0))[0, 0].double() - 2.0**24).item() == 2.0


# Refused --------------------------------------------------------------------------------


class Mixes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear, self.sn = how, sf.OverTime(nn.Linear(8, 8)), sf.IF(0.2)
        self.sn2, self.lstm = sf.IF(0.2), nn.LSTM(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "ahead":
            return self.sn(self.linear(x - x.mean(0)))
        spikes = self.sn(self.linear(x))
        match self.how:
            case "behind":
                return spikes.mean(0)
            case "attention":
                scores = spikes.transpose(0, 1)
                return ((scores @ scores.transpose(1, 2)) @ scores).transpose(0, 1)
            case "recurrent":
                return self.sn2(self.lstm(spikes)[0])
            case "sizes":
                return self.sn2(spikes.reshape(T, B, 8))
            case "called twice":
                return self.sn(spikes)
            case "holds":
                return self.sn2(spikes[0], steps=3)
            case "two results":
                return spikes, spikes
        return spikes


REFUSED = {
    "ahead": r"the forward of Mixes mixes time steps ahead of 'linear' \(OverTime\)",
    "behind": r"the forward of the model \(Mixes\) mixes time steps behind .*Readout\('mean'\)",
    "attention": r"the forward of the model \(Mixes\) mixes time steps behind",
    "recurrent": r"'lstm' \(LSTM\) mixes time steps",
    "sizes": r"runs on the whole sample, and not on 5 steps of it: RuntimeError: shape",
    "called twice": r"'sn' \(IF\) is called 2 times in one forward.*a layer of its own",
    "holds": r"the forward of Mixes holds a current .* give it an argument steps",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_mixes_time_steps_is_refused_with_what_does(how):
    with pytest.raises(ValueError, match=REFUSED[how]):
        sf.streaming(Mixes(how), drawn(T, B, 8))


def test_the_same_without_mixing_is_streamed():
    assert sf.streaming(Mixes("none"), drawn(T, B, 8)).over_time


class Backwards(sf.IF):
    def forward(self, current: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        return super().forward(current.flip(0), steps)


def test_a_neuron_that_is_to_blame_is_named():
    with pytest.raises(ValueError, match=r"'1' \(Backwards\) makes other spikes of equal currents"):
        sf.streaming(nn.Sequential(sf.IF(0.5), Backwards(0.5)), drawn(T, B, 8))


@pytest.mark.parametrize(
    ("make", "sample", "error", "words"),
    [
        (lambda: 1, drawn(T, B, 8), TypeError, "model must be a torch.nn.Module"),
        (sf.IF, [1.0], TypeError, "sample must be a tensor"),
        (sf.IF, (drawn(T, B, 8),), TypeError, "sample must be a tensor, got tuple"),
        (sf.IF, drawn(T), ValueError, "sample must be a sequence"),
        (sf.IF, drawn(1, B, 8), ValueError, "sample must have at least 2 steps"),
        (lambda: nn.Linear(8, 8), drawn(T, B, 8), ValueError, "no spiking layer"),
        (lambda: Mixes("two results"), drawn(T, B, 8), TypeError, "model must return a tensor, Mixes returns tuple"),
        (lambda: sf.streaming(sf.IF(), drawn(T, B, 8)), drawn(T, B, 8), TypeError, "model is a stream already"),
        (
            lambda: nn.Sequential(sf.IF(), sf.IF(time_dim=1)),
            drawn(T, B, 8),
            ValueError,
            "time_dim=0 at '0', time_dim=1 at '1'",
        ),
        (
            lambda: nn.Sequential(sf.OverTime(nn.BatchNorm1d(8, track_running_stats=False)), sf.IF()),
            drawn(T, B, 8),
            ValueError,
            r"'0.module' \(BatchNorm1d\) has no running statistics",
        ),
        (lambda: nn.Sequential(sf.OverTime(nn.LazyLinear(8)), sf.IF()), drawn(T, B, 8), ValueError, "initialised"),
        (lambda: models.digits(), drawn(T, B, 1, 8, 8), ValueError, r"images must have the shape \[B, C, H, W\]"),
    ],
)
def test_what_no_stream_is_made_of_is_refused_by_name(make, sample, error, words):
    with pytest.raises(error, match=words):
        sf.streaming(make(), sample)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s(1.0), TypeError, "step must be a tensor"),
        (lambda s: s(drawn(T, B, 8)), ValueError, r"step must have 2 dimensions, \[B, ...\].*stream.chunk"),
        (lambda s: s(torch.ones(B, 8, dtype=torch.long)), TypeError, r"step must be floating.*step.float\(\)"),
        (lambda s: s(drawn(B, 8).to_sparse()), TypeError, "step must be a dense tensor"),
        (lambda s: s.chunk(drawn(B, 8)), ValueError, r"steps must have 3 dimensions, \[T, B, ...\]"),
        (lambda s: s.chunk(drawn(0, B, 8)), ValueError, "steps must have at least one step"),
        (lambda s: s.chunk(drawn(T, B, 8), 3), ValueError, "count must be None, got 3"),
    ],
)
def test_a_wrong_step_is_refused_by_name(call, error, words):
    stream = sf.streaming(Mixes("none"), drawn(T, B, 8))
    with pytest.raises(error, match=words):
        call(stream)


@pytest.mark.parametrize(("count", "error"), [(None, TypeError), (0, ValueError), (1.0, TypeError)])
def test_a_held_chunk_needs_its_number_of_steps(count, error):
    stream = sf.streaming(models.digits(), drawn(B, 1, 8, 8))
    with pytest.raises(error, match="count must be"):
        stream.chunk(drawn(B, 1, 8, 8), count)
