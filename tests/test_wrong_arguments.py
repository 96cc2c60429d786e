"""Every parameter of the public API, given what it cannot be, is refused at once by an error that names it.

A table: for each public callable a call that works, and what kind of thing each of its parameters is. For each kind
there is a list of things that are not of it.
"""

from __future__ import annotations

import inspect
import math
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import snnfast as sf
from snnfast import convert, losses, models, tuning
from snnfast.data import augment

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Sparse"),
]


def nested(*shape: int) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(n, *shape[1:]) for n in (shape or (2,))[:1] * 2])


def mkldnn(*shape: int) -> torch.Tensor:
    return torch.ones(shape or (1,)).to_mkldnn()


HUGE = [2**31, 2**63, 10**30, -(2**63) - 1]
NO_TENSOR = [None, 1.0, [1.0], "x", np.ones(3, np.float32)]


def kinds() -> dict[str, list[Any]]:
    """What is not of a kind. Those that some parameters do take are left out by the table."""
    return {
        "flag": [1, 0, "yes", "False", None, torch.tensor(True), torch.ones(2), np.bool_(True), np.ones(2, bool), []],
        "flag or None": [1, 0, "yes", torch.tensor(True), torch.ones(2), np.bool_(True), np.ones(2, bool), []],
        "number": ["1", None, True, [1.0], np.ones(2), 1j, math.nan, 10**400, torch.ones(2, 2, dtype=torch.bool)],
        "one number": ["1", None, True, [1.0], np.ones(2), 1j, math.nan, 10**400, torch.tensor(0.5), torch.ones(2)],
        "size": [1.0, "3", None, True, [1], np.ones(2), torch.tensor(3), -1, 0, *HUGE],
        "features": [1.0, "3", None, True, [1], np.ones(2), torch.tensor(3), -1, *HUGE],
        "steps or None": [1.0, "3", True, [1], np.ones(2), torch.tensor(3), -1, 0, *HUGE],
        "count": [1.0, "3", None, True, [1], np.ones(2), torch.tensor(3), -1, *HUGE[1:]],
        "axis": [1.0, "0", None, True, [1], np.ones(2), torch.tensor(1), -1, 2, 2**63],
        "word": [1, None, "nonsense", "", [], ["hard"], np.array(["hard", "soft"]), torch.ones(2), True],
        "floats": [
            *NO_TENSOR,
            torch.ones(2, 3, 4, dtype=torch.int64),
            torch.ones(2, 3, 4, dtype=torch.complex64),
            torch.ones(2, 3, 4).to_sparse(),
            nested(3, 4),
            mkldnn(2, 3, 4),
        ],
        "floats or None": [
            *NO_TENSOR[1:],
            torch.ones(2, 3, 4, dtype=torch.int64),
            torch.ones(3, dtype=torch.bool),
            torch.ones(2, 3, 4).to_sparse(),
            nested(3, 4),
            mkldnn(2, 3, 4),
        ],
        "tensor": [*NO_TENSOR, nested(3, 4), mkldnn(2, 3, 4), torch.ones(2, 3, 4).to_sparse()],
        "surrogate": [1, "FastSigmoid", sf.surrogate.FastSigmoid, [], torch.ones(2), np.ones(2)],
        "module": [None, 1, "x", [], nn.Linear, torch.ones(2)],
        "module or None": [1, "x", [], nn.Linear, torch.ones(2)],
        "batches": [None, 1, iter([]), [], [1], [(torch.ones(1),)], torch.tensor(1.0)],
        "function": [None, 1, "x", torch.ones(2)],
        "device": [-1, -(2**63), 10**30, "", "nonsense", "cuda:-1", "cuda:99999999999", 1.5, [], torch.ones(2)],
        "dtype": ["float32", 1, torch.int64, torch.bool, torch.complex64, [], torch.ones(2)],
        "group": [1, "nonsense", [], torch.ones(2)],
        "generator": [1, "x", [], torch.ones(2), True],
        "path": [1.5, [], torch.ones(2)],
    }


KINDS = kinds()


@dataclass(frozen=True)
class Entry:
    """A call that works with ``given``, and the kinds of its parameters. ``also``: other words for a parameter."""

    call: Callable[..., Any]
    given: dict[str, Any]
    kinds: dict[str, str]
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()


X = torch.ones(2, 3, 4)
NEURON = {
    "threshold": "number",
    "reset": "word",
    "reset_value": "one number",
    "surrogate": "surrogate",
    "detach_reset": "flag or None",
    "fire_on_equal": "flag",
    "delay": "flag",
    "time_dim": "axis",
}
LEAK = {"tau": "number", "decay_input": "flag"}
CALL = {"current": "floats", "v0": "floats or None", "steps": "steps or None", "return_potential": "flag"}
LAYER = {"carry_state": "flag", "learn_threshold": "flag", "device": "device", "dtype": "dtype"}
NORM = {
    "num_features": "features",
    "eps": "one number",
    "momentum": "momentum",
    "affine": "flag",
    "track_running_stats": "flag",
    "process_group": "group",
}
KINDS["momentum"] = [v for v in KINDS["one number"] if v is not None] + [-0.5, 1.5]
NETWORK = {"num_classes": "size", "in_channels": "size", "activation": "word", "steps": "size", "image_size": "size"}


def net() -> nn.Module:
    return nn.Sequential(sf.OverTime(nn.Linear(4, 4)), sf.IF(), sf.OverTime(nn.Linear(4, 4)), sf.IF(), sf.Readout())


BATCHES = [(torch.ones(2, 3, 4), torch.zeros(3, dtype=torch.long))]
SPIKES = {"spikes": X, "potential": X, "target": X}
IMAGES = torch.rand(2, 3, 8, 8)


def entries() -> dict[str, Entry]:
    neuron_words = {"reset_value": ("reset",)}
    found = {}
    for name, module in (("functional", sf.functional), ("reference", sf.reference)):
        found[f"{name}.integrate_and_fire"] = Entry(module.integrate_and_fire, {"current": X}, {**CALL, **NEURON})
        found[f"{name}.leaky_integrate_and_fire"] = Entry(
            module.leaky_integrate_and_fire, {"current": X}, {**CALL, **NEURON, **LEAK}
        )
    found["functional.batch_norm_integrate_and_fire"] = Entry(
        sf.functional.batch_norm_integrate_and_fire,
        {"current": X},
        {
            **CALL,
            **NEURON,
            "decay_input": "flag",
            "tau": "number or None",
            "residual": "floats or None",
            "weight": "floats or None",
            "bias": "floats or None",
            "running_mean": "floats or None",
            "running_var": "floats or None",
            "training": "flag",
            "momentum": "one number",
            "eps": "one number",
            "process_group": "group",
        },
    )
    for make in (sf.IF, models.ResidualIF):
        found[make.__name__] = Entry(make, {}, {**NEURON, **LAYER})
    for make in (sf.LIF, models.ResidualLIF):
        found[make.__name__] = Entry(make, {}, {**NEURON, **LAYER, **LEAK, "learn_tau": "flag"})
    found["BatchNormIF"] = Entry(sf.BatchNormIF, {"num_features": 3}, {**NEURON, **LAYER, **NORM})
    found["BatchNormLIF"] = Entry(
        sf.BatchNormLIF, {"num_features": 3}, {**NEURON, **LAYER, **NORM, **LEAK, "learn_tau": "flag"}
    )
    found["BatchNormIF.convert_sync"] = Entry(
        sf.BatchNormIF.convert_sync, {"module": net()}, {"module": "module", "process_group": "group"}
    )
    found["Readout"] = Entry(sf.Readout, {}, {"mode": "word", "time_dim": "axis"})
    found["OverTime"] = Entry(sf.OverTime, {"module": nn.ReLU()}, {"module": "module"})
    for name in ("IF", "LIF", "BatchNormIF", "BatchNormLIF"):
        layer = found[name].call(*found[name].given.values())
        kinds = {"current": "floats", "steps": "steps or None"}
        if "Batch" in name:
            kinds["residual"] = "floats or None"
            layer = found[name].call(X.shape[2])
        found[f"{name}()"] = Entry(layer.forward, {"current": X}, kinds)
    for layer in (sf.Readout(), sf.OverTime(nn.Identity())):
        kind = {"over_time": "tensor"}
        found[f"{type(layer).__name__}()"] = Entry(
            layer.forward, {"over_time": X}, kind, {"over_time": (type(layer).__name__,)}
        )
    for shape in sf.surrogate.SHAPES.values():
        found[f"surrogate.{shape.__name__}"] = Entry(shape, {}, {"gamma": "one number", "beta": "one number"})
    found["fuse"] = Entry(sf.fuse, {"model": net()}, {"model": "module"})
    found["pack_spikes"] = Entry(sf.pack_spikes, {}, {"model": "module or None"})
    found["memory_report"] = Entry(
        sf.memory_report, {"model": net(), "sample": X}, {"model": "module", "sample": "sample"}
    )
    found |= {f"losses.{name}": entry for name, entry in loss_entries().items()}
    found |= {f"models.{name}": entry for name, entry in model_entries().items()}
    found |= {f"tuning.{name}": entry for name, entry in tuning_entries().items()}
    found |= {f"data.{name}": entry for name, entry in data_entries().items()}
    return {name: Entry(e.call, e.given, e.kinds, {**neuron_words, **e.also}, e.exempt) for name, e in found.items()}


def loss_entries() -> dict[str, Entry]:
    tensors = {"spikes": "tensor", "potential": "floats", "target": "tensor"}
    options = {"reduction": "word"}
    rossum = {**options, "tau": "one number", "kernel": "floats or None"}
    return {
        "spike_train_loss": Entry(losses.spike_train_loss, SPIKES, {**tensors, **options}),
        "van_rossum_loss": Entry(losses.van_rossum_loss, SPIKES, {**tensors, **rossum}),
        "spike_count_loss": Entry(
            losses.spike_count_loss, {**SPIKES, "target": X[0]}, {**tensors, **options, "count": "count"}
        ),
        "SpikeTrainLoss": Entry(losses.SpikeTrainLoss, {}, options),
        "VanRossumLoss": Entry(losses.VanRossumLoss, {}, rossum),
        "SpikeCountLoss": Entry(losses.SpikeCountLoss, {}, {**options, "count": "count"}),
    }


def model_entries() -> dict[str, Entry]:
    build = {"neuron": ("neuron",)}
    plain = {**NETWORK, "batch_norm": "flag"}
    no_size = {name: kind for name, kind in plain.items() if name != "image_size"}
    image = {"image_shape": "image shape", "classes": "size"}
    return {
        "digits": Entry(models.digits, {}, {**NETWORK, "widths": "widths"}, build),
        "mnist_net": Entry(models.mnist_net, {}, plain, build),
        "plain_net": Entry(models.plain_net, {"width": 4}, {**plain, "width": "size", "layers": "layers"}, build),
        "resnet11": Entry(models.resnet11, {"width": 4}, {**plain, "width": "size"}, build),
        "resnet18": Entry(models.resnet18, {"width": 4}, {**no_size, "width": "size", "stem": "word"}, build),
        "resnet50": Entry(models.resnet50, {"width": 4}, {**no_size, "width": "size", "stem": "word"}, build),
        "build": Entry(models.build, {"name": "digits"}, {"name": "word"}, {"name": ("network",)}),
        "for_images": Entry(
            models.for_images,
            {"name": "digits", "image_shape": (1, 8, 8), "classes": 10},
            {"name": "word", **image},
            {"name": ("network",), "classes": ("num_classes",), "image_shape": ("in_channels", "image_size")},
        ),
        "takes": Entry(
            models.takes,
            {"name": "digits", "option": "steps"},
            {"name": "word"},
            {"name": ("network",)},
            exempt=("option",),
        ),
        "DigitsNet": Entry(
            models.DigitsNet, {}, {**image, "steps": "size", "widths": "widths", "neuron": "function or None"}
        ),
        "Activation": Entry(
            models.Activation,
            {},
            {"kind": "word", "batch_norm": "flag", "neuron": "options"},
            {"kind": ("activation",)},
        ),
        "synchronize": Entry(
            models.synchronize, {"model": net()}, {"model": "module", "process_group": "group"}, {"model": ("module",)}
        ),
    }


def tuning_entries() -> dict[str, Entry]:
    trial = {"model": "module", "batches": "batches", "loss": "function"}
    run = {"model": net(), "batches": BATCHES}
    test = {
        "lowest": "one number",
        "highest": "one number",
        "steps": "size",
        "smoothing": "one number",
        "divergence": "one number",
        "optimizer": "function",
    }
    ann = models.build("mnist_net", image_size=16, activation="relu")
    spiking = models.digits().eval()
    return {
        "gradient_profile": Entry(tuning.gradient_profile, run, trial),
        "tune_gamma": Entry(
            tuning.tune_gamma,
            run,
            {**trial, "start": "one number", "tolerance": "one number", "max_evaluations": "count"},
        ),
        "lr_range_test": Entry(tuning.lr_range_test, run, {**trial, **test}, {"lowest": ("rates",)}),
        "hold_thresholds": Entry(tuning.hold_thresholds, {"model": net()}, {"model": "module"}),
        "normalize_thresholds": Entry(tuning.normalize_thresholds, run, {"model": "module", "batches": "batches"}),
        "plot_profiles": Entry(
            tuning.plot_profiles, {"profiles": {}, "path": "x"}, {"profiles": "options", "path": "path"}
        ),
        "to_spiking": Entry(
            convert.to_spiking,
            {"ann": ann, "batches": [torch.rand(2, 1, 16, 16)]},
            {"ann": "module", "batches": "images", "steps": "size"},
        ),
        "largest_current": Entry(
            convert.largest_current,
            {"network": spiking, "neuron": spiking.neurons()[0], "images": IMAGES[:, :1]},
            {"network": "module", "neuron": "module", "images": "tensor"},
        ),
    }


def data_entries() -> dict[str, Entry]:
    shares = {name: "one number" for name in ("brightness", "contrast", "saturation", "hue")}
    images, generator = {"images": IMAGES}, {"generator": "generator"}
    batches = sf.data.Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), 255.0).batches
    return {
        "augment.Augmentation": Entry(augment.Augmentation, {}, {**shares, "flip": "one number", "padding": "count"}),
        "augment.CIFAR": Entry(augment.CIFAR.__call__, images, {"images": "floats", **generator}),
        "augment.horizontal_flip": Entry(
            augment.horizontal_flip, images, {"images": "floats", "probability": "one number", **generator}
        ),
        "augment.random_crop": Entry(
            augment.random_crop, images, {"images": "floats", "padding": "count", **generator}
        ),
        "augment.color_jitter": Entry(augment.color_jitter, images, {"images": "floats", **shares, **generator}),
        "check_known": Entry(sf.data.check_known, {"name": "digits"}, {"name": "word"}, {"name": ("data set",)}),
        "load": Entry(
            sf.data.load,
            {"name": "mnist", "data_dir": "."},
            {"name": "word", "data_dir": "path"},
            {"name": ("data set",)},
        ),
        "Split.batches": Entry(
            lambda **given: next(batches(**given)),
            {"batch_size": 2},
            {"batch_size": "size", "shuffle": "generator", "drop_last": "flag"},
        ),
    }


KINDS |= {
    "number or None": [v for v in KINDS["number"] if v is not None],
    "sample": [None, 1, [1.0], "x"],
    "widths": [1, None, "abc", (1, 2), (1, 2, 3, 4), (0, 1, 1), (1.0, 2, 3), (1, 2, 2**63), [True, 1, 1], "123"],
    "image shape": [1, None, "abc", (1, 8), (1, 8, 8, 8), (0, 8, 8), (1.0, 8, 8), (1, 2**63, 2**63), (-1, 8, 8)],
    "layers": [6, None, "5", 5.0, True, [], torch.ones(2), 2**63],
    "options": [1, "x", [1], None],
    "function or None": KINDS["function"][1:],
    "images": [None, 1, [], [1], [None]],
}
ENTRIES = entries()


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.layout} {value.dtype}{' nested' if value.is_nested else ''}"
    return repr(value)[:30]


@pytest.fixture(autouse=True)
def soon():
    """A call that does not come back is an error, too."""

    def alarm(*_: object) -> None:
        raise RuntimeError("it did not come back")

    before = signal.signal(signal.SIGALRM, alarm)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(entry: Entry, name: str, value: Any) -> str | None:
    """None where the value was refused by name; otherwise what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signal.alarm(10)
            entry.call(**{**entry.given, name: value})
    except (TypeError, ValueError) as error:
        words = (name, *entry.also.get(name, ()))
        if any(word in str(error) for word in words):
            return None
        return f"{type(error).__name__} without the name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


@pytest.mark.parametrize("name", ENTRIES)
def test_wrong_arguments_are_refused_by_name(name):
    entry = ENTRIES[name]
    problems = [
        f"{parameter}={shown(value)}: {found}"[:220]
        for parameter, kind in entry.kinds.items()
        for value in KINDS[kind]
        if (found := refusal(entry, parameter, value)) is not None
    ]
    assert not problems, "\n" + "\n".join(problems)


# What the table leaves out, and why.
RECORDS = "a record of results, made by the package"
PARTS = "a part that the networks are made of, by the package"
LEFT_OUT = {
    **dict.fromkeys(["GammaSearch", "GradientProfile", "LearningRateRange", "ImageData"], RECORDS),
    **dict.fromkeys(["FuseReport", "CheckReport"], RECORDS),
    **dict.fromkeys(["Network", "FeedForwardNet", "ResNet", "ResidualBlock", "SummedLinear", "ReLU"], PARTS),
    **dict.fromkeys(["BatchNorm2d", "BatchNormReLU"], "torch's own arguments, and a process group"),
    **dict.fromkeys(["names", "data_sets", "build_info", "ACTIVATIONS", "__version__"], "no arguments"),
    "Split": "its batches are in the table",
    "DataError": "an error",
    "NeuronFactory": "a type",
    "Surrogate": "the base of the shapes",
    "functional": "a module",
    "reference": "a module",
    "surrogate": "a module",
    "augment": "a module",
    "check": "tested on its own",
    "reset_state": "tested on its own",
    "detach_state": "tested on its own",
}
FREE = {"neuron", "options", "args", "kwargs", "self", "option", "unknown", "name_of"}  # of what they are passed on to


def test_the_table_has_every_public_callable_and_all_of_its_parameters():
    modules = [sf, sf.functional, sf.reference, losses, models, tuning, convert, sf.data, augment, sf.surrogate]
    names = {name.split(".")[-1]: entry for name, entry in ENTRIES.items()}
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if name not in names and name not in LEFT_OUT
    ]
    assert not missing, missing
    for name, entry in ENTRIES.items():
        parameters = inspect.signature(entry.call).parameters.keys() - FREE
        if name not in ("data.Split.batches", "data.augment.CIFAR"):
            assert parameters - {"neuron"} <= entry.kinds.keys() | set(entry.exempt), name


ASSIGNED = {**{name: kind for name, kind in NEURON.items() if name != "time_dim"}, "training": "flag"}
OPTIONS_OF = {
    "IF": ASSIGNED,
    "LIF": {**ASSIGNED, **LEAK},
    "BatchNormIF": {**ASSIGNED, "eps": "one number", "momentum": "momentum"},
    "BatchNormLIF": {**ASSIGNED, **LEAK, "eps": "one number", "momentum": "momentum"},
}


@pytest.mark.parametrize("name", OPTIONS_OF)
@pytest.mark.parametrize("learn", [False, True], ids=["", "learned"])
def test_wrong_values_assigned_to_a_layer_are_refused_by_name_and_leave_it_as_it_was(name, learn):
    made = {"learn_threshold": True, **({"learn_tau": True} if "LIF" in name else {})} if learn else {}
    layer = getattr(sf, name)(*([3] if "Batch" in name else []), **made)
    before = repr(layer)
    for parameter, kind in OPTIONS_OF[name].items():
        # A learned threshold is a parameter: torch says which kinds of values take its place.
        for value in KINDS[kind] if parameter != "threshold" or not learn else []:
            if isinstance(value, torch.Tensor) and parameter in ("threshold", "tau"):
                continue  # a tensor's dtype is looked at in the call
            entry = Entry(
                lambda parameter=parameter, **given: setattr(layer, parameter, given[parameter]),
                {},
                {},
                {"reset_value": ("reset",)},
            )
            found = refusal(entry, parameter, value)
            assert found is None, f"{parameter}={shown(value)}: {found}"
            assert repr(layer) == before


@pytest.mark.parametrize("name", ["Readout", "OverTime"])
def test_wrong_values_assigned_to_the_small_layers_are_refused_by_name(name):
    layer = sf.Readout() if name == "Readout" else sf.OverTime(nn.ReLU())
    options = {"mode": "word", "time_dim": "axis"} if name == "Readout" else {"module": "module"}
    for parameter, kind in options.items():
        for value in KINDS[kind]:
            with pytest.raises((TypeError, ValueError), match=parameter):
                setattr(layer, parameter, value)
    layer(X)


@pytest.mark.parametrize("value", [1e39, -1e39, 3.5e38, math.inf, -(10**300)])
def test_a_reset_value_beyond_float32_is_refused_by_kernels_and_reference_alike(value):
    for call in (
        sf.functional.integrate_and_fire,
        sf.reference.integrate_and_fire,
        sf.functional.batch_norm_integrate_and_fire,
    ):
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(ValueError, match=r"reset_value must be between -3\.4028235e\+38"):
                call(X.to(dtype), reset_value=value)


@pytest.mark.parametrize("value", [-1, 10**30, "nonsense", 1.5, "cuda:99999999999"])
def test_a_wrong_device_is_found_before_anything_is_made(value):
    for make in (sf.BatchNormIF, sf.BatchNormLIF):
        with pytest.raises((TypeError, ValueError), match=r"device must be a torch\.device"):
            make(3, device=value)
