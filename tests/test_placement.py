"""Where a layer's tensors are and of which dtype, and what they start from: device=, dtype=, the meta device,
reset_parameters()."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from naming import shown
from torch import nn

import snnfast as sf

X = torch.randn(6, 4, 3, 2, generator=torch.Generator().manual_seed(0))
CHANNELS = torch.tensor([0.3, 0.4, 0.5])
OPTIONS = {
    "numbers": {},
    "learned numbers": {"threshold": 0.4, "learn_threshold": True, "tau": 3.0, "learn_tau": True},
    "tensors of one element": {"threshold": torch.tensor([0.4]), "tau": torch.tensor(3.0)},
    "learned tensors of one element": {
        "threshold": torch.tensor(0.4),
        "learn_threshold": True,
        "tau": torch.tensor([3.0]),
        "learn_tau": True,
    },
    "per channel": {"threshold": CHANNELS, "tau": CHANNELS + 1},
    "learned per channel": {
        "threshold": CHANNELS,
        "learn_threshold": True,
        "tau": CHANNELS + 1,
        "learn_tau": True,
        "reset": "soft",
    },
}
MAKERS = [sf.IF, sf.LIF, sf.BatchNormIF, sf.BatchNormLIF]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
kinds = pytest.mark.parametrize("kind", OPTIONS)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def arguments(make, kind: str) -> tuple[tuple[int, ...], dict]:
    """Those of a layer of a kind: the channels of a batch norm, and options."""
    options = {n: value for n, value in OPTIONS[kind].items() if "tau" not in n or make in (sf.LIF, sf.BatchNormLIF)}
    return (3,) * issubclass(make, sf.BatchNormIF | sf.BatchNormLIF), options


def made(make, kind: str, **more) -> nn.Module:
    given, options = arguments(make, kind)
    return make(*given, **{**options, **more})


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def started_anew(network: nn.Module) -> nn.Module:
    """A network from the meta device as torch's documentation says; what nobody sets is 77."""
    assert all(tensor.is_meta for tensor in tensors(network).values())
    network.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in tensors(network).values():
            tensor.fill_(77)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def assert_equal(found: nn.Module, wanted: nn.Module) -> None:
    ours, theirs = tensors(found), tensors(wanted)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype, name
        assert tensor.requires_grad == theirs[name].requires_grad
    assert repr(found) == repr(wanted)


# device= and dtype=


@makers
@kinds
def test_every_tensor_is_made_on_the_device(make, kind):
    layer = made(make, kind, device="meta")
    assert all(tensor.is_meta for tensor in tensors(layer).values())
    assert tensors(layer).keys() == tensors(made(make, kind)).keys()
    assert layer(X.to("meta")).shape == X.shape


@makers
@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tensor_is_made_in_the_dtype(make, kind, dtype):
    layer, converted = made(make, kind, dtype=dtype), made(make, kind).to(dtype)
    ours, theirs = tensors(layer), tensors(converted)
    assert ours.keys() == theirs.keys() and repr(layer) == repr(converted)
    for name, tensor in ours.items():  # made in float64 they are exacter than converted to it
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=0)
    assert layer(X.to(dtype)).dtype == dtype
    assert all(t.dtype == dtype for name, t in tensors(layer).items() if name != "num_batches_tracked")


@makers
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_without_a_dtype_numbers_take_torchs_default_and_tensors_keep_their_own(make, default):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        assert {t.dtype for t in made(make, "learned numbers").parameters()} == {default}
        layer = made(make, "per channel", threshold=CHANNELS.half())
        assert layer.threshold.dtype == torch.float16
    finally:
        torch.set_default_dtype(before)


@makers
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, "float32", float, 3], ids=shown)
def test_a_dtype_that_neurons_do_not_have_is_refused_by_name(make, dtype):
    with pytest.raises(TypeError, match=r"dtype must be float32, float64, float16, bfloat16 or None, got"):
        made(make, "numbers", dtype=dtype)


def test_a_tensor_without_values_cannot_be_put_on_a_device():
    with pytest.raises(ValueError, match=r"threshold is a tensor on the meta device.*cpu"):
        sf.IF(torch.ones(3, device="meta"), device="cpu")
    with pytest.raises(ValueError, match=r"tau.* is a tensor on the meta device.*cpu"):
        sf.LIF(torch.ones(3, device="meta"), learn_tau=True, device="cpu")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (sf.IF, "learned numbers"),
        (sf.IF, "per channel"),
        (sf.IF, "learned per channel"),
        (sf.BatchNormLIF, "learned numbers"),
    ],
    ids=shown,
)
def test_skip_init_makes_an_uninitialised_layer(make, kind):
    given, options = arguments(make, kind)
    layer = torch.nn.utils.skip_init(make, *given, **options)
    assert layer.threshold.is_cpu
    layer.reset_parameters()
    assert_equal(layer, make(*given, **options))


# What tensors start from


WAYS = {
    "device=": lambda make, kind: made(make, kind, device="meta"),
    ".to()": lambda make, kind: made(make, kind).to("meta"),
    "copied": lambda make, kind: copy.deepcopy(made(make, kind)).to("meta"),
    "pickled": lambda make, kind: pickle.loads(pickle.dumps(made(make, kind, device="meta"))),
}


@makers
@kinds
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_from_the_meta_device_starts_as_one_made_with_values(make, kind, way):
    layer = started_anew(WAYS[way](make, kind))
    assert_equal(layer, made(make, kind))
    assert torch.equal(layer(X), made(make, kind)(X))


@makers
@pytest.mark.parametrize("kind", ["numbers", "learned numbers"])
def test_numbers_are_known_within_torchs_device_context_too(make, kind):
    with torch.device("meta"):
        layer = made(make, kind)
    assert_equal(started_anew(layer), made(make, kind))


@makers
def test_tensors_made_before_torchs_device_context_have_values_and_stay_where_they_are(make):
    with torch.device("meta"):
        layer = made(make, "per channel")
    assert torch.equal(layer.threshold, CHANNELS)


@makers
def test_a_tensor_made_on_the_meta_device_has_no_values_to_start_from(make):
    with torch.device("meta"):
        layer = made(make, "numbers", threshold=torch.tensor([0.5]), learn_threshold=True)
    layer.reset_parameters()  # there is nothing to set
    layer.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=rf"threshold of {make.__name__} was given .*meta.*device='cpu'"):
        layer.reset_parameters()


@makers
@kinds
def test_resetting_undoes_training_in_place_and_keeps_options(make, kind):
    layer, fresh = made(make, kind), made(make, kind)
    before = tensors(layer)
    with torch.no_grad():
        for tensor in before.values():
            tensor.add_(1)
    layer.surrogate = fresh.surrogate = sf.surrogate.Triangle()
    layer.reset_parameters()
    assert_equal(layer, fresh)
    assert all(tensor is before[name] for name, tensor in tensors(layer).items())
    if kind == "numbers":
        layer.threshold = 0.7
        layer.reset_parameters()
        assert layer.threshold == 0.7  # an option


def test_what_a_layer_starts_from_is_its_own():
    given = CHANNELS.clone()
    layer = sf.IF(given, learn_threshold=True)
    given.fill_(9.0)
    with torch.no_grad():
        layer.threshold.fill_(8.0)
    layer.reset_parameters()
    assert torch.equal(layer.threshold, CHANNELS) and layer.state_dict().keys() == {"threshold"}
    layer.half().reset_parameters()
    assert torch.equal(layer.threshold, CHANNELS.half())


@pytest.mark.parametrize("kind", ["learned numbers", "learned per channel", "per channel"])
def test_a_fused_network_starts_from_what_its_neurons_did(kind):
    network = nn.Sequential(sf.OverTime(nn.BatchNorm2d(3)), made(sf.LIF, kind))
    wanted = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for tensor in tensors(network).values():
            tensor.add_(1)
    assert sf.fuse(network).fused
    network = started_anew(network.to("meta"))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@makers
@kinds
def test_a_layer_pickled_before_it_knew_its_start_takes_the_values_that_it_had(make, kind):
    layer = made(make, kind)
    state = layer.__getstate__()
    del state["_started"], state["_learned"]
    other = make.__new__(make)
    other.__setstate__(copy.deepcopy(state))
    assert_equal(other, layer)
    assert torch.equal(other(X), layer(X))
    with torch.no_grad():
        for tensor in tensors(other).values():
            tensor.add_(1)
    other.reset_parameters()
    assert_equal(other, made(make, kind))


# Networks


NEURONS = {
    "learned threshold": {"learn_threshold": True},
    "lif, learned tau": {"activation": "lif", "tau": 3.0, "learn_tau": True},
}


@pytest.mark.parametrize("name", sf.models.names())
@pytest.mark.parametrize("neurons", NEURONS)
def test_a_network_may_be_made_on_the_meta_device(name, neurons):
    narrow = {"width": 4} if sf.models.takes(name, "width") else {}  # the same tensors, smaller
    options = {**NEURONS[neurons], **narrow}
    wanted = sf.models.build(name, **options)
    with torch.device("meta"):
        network = sf.models.build(name, **options)
    started_anew(network)
    for key, tensor in wanted.state_dict().items():
        found = network.state_dict()[key]
        assert found.shape == tensor.shape and (found != 77).all(), key
        assert torch.equal(found, tensor) or ".weight" in key or ".bias" in key, key
    network.load_state_dict(wanted.state_dict())


@pytest.mark.parametrize("name", sf.models.names())
@pytest.mark.parametrize(("option", "value"), [("device", "meta"), ("dtype", torch.float64)], ids=["device", "dtype"])
def test_a_networks_neurons_alone_cannot_be_placed(name, option, value):
    with pytest.raises(TypeError, match=rf"{option} is no option of a network.*torch\.device"):
        sf.models.build(name, **{option: value})
