"""A call of everything public that works, and what kind of thing each of its parameters is.

For each kind there is a list of things that are not of it (wrong_kinds.py). A new name or parameter belongs into the
table of its module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn
from wrong_kinds import KINDS

import snnfast as sf
from snnfast import convert, losses, models, tuning
from snnfast.compat import snntorch
from snnfast.data import augment


@dataclass(frozen=True)
class Entry:
    """A call that works with ``given``, and the kinds of its parameters.

    Attributes:
        also: other words that an error may have in place of a parameter's name.
        exempt: parameters that take anything.
    """

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
# Of the named networks, whatever each takes of these.
NETWORK = {
    "num_classes": "size",
    "in_channels": "size",
    "activation": "word",
    "steps": "size",
    "image_size": "size",
    "width": "size",
    "widths": "widths",
    "layers": "layers",
    "stem": "word",
    "batch_norm": "flag",
    "zero_init_residual": "flag",
    "shortcut_scale": "one number",
}


def net() -> nn.Module:
    return nn.Sequential(sf.OverTime(nn.Linear(4, 4)), sf.IF(), sf.OverTime(nn.Linear(4, 4)), sf.IF(), sf.Readout())


BATCHES = [(torch.ones(2, 3, 4), torch.zeros(3, dtype=torch.long))]
SPIKES = {"spikes": X, "potential": X, "target": X}
IMAGES = torch.rand(2, 3, 8, 8)


def layer_entries() -> dict[str, Entry]:
    leaky = {**LEAK, "learn_tau": "flag"}
    norm = {"num_features": 3}
    over_time = {"over_time": "tensor"}
    held = {"current": "floats", "steps": "steps or None"}
    added = {**held, "residual": "floats or None"}
    return {
        "IF": Entry(sf.IF, {}, {**NEURON, **LAYER}),
        "LIF": Entry(sf.LIF, {}, {**NEURON, **LAYER, **leaky}),
        "BatchNormIF": Entry(sf.BatchNormIF, norm, {**NEURON, **LAYER, **NORM}),
        "BatchNormLIF": Entry(sf.BatchNormLIF, norm, {**NEURON, **LAYER, **NORM, **leaky}),
        "BatchNormIF.convert_sync": Entry(
            sf.BatchNormIF.convert_sync, {"module": net()}, {"module": "module", "process_group": "group"}
        ),
        "Readout": Entry(sf.Readout, {}, {"mode": "word", "time_dim": "axis"}),
        "OverTime": Entry(sf.OverTime, {"module": nn.ReLU()}, {"module": "module"}),
        "IF()": Entry(sf.IF().forward, {"current": X}, held),
        "LIF()": Entry(sf.LIF().forward, {"current": X}, held),
        "BatchNormIF()": Entry(sf.BatchNormIF(4).forward, {"current": X}, added),
        "BatchNormLIF()": Entry(sf.BatchNormLIF(4).forward, {"current": X}, added),
        "Readout()": Entry(sf.Readout().forward, {"over_time": X}, over_time, {"over_time": ("Readout",)}),
        "OverTime()": Entry(
            sf.OverTime(nn.Identity()).forward, {"over_time": X}, over_time, {"over_time": ("OverTime",)}
        ),
        "fuse": Entry(sf.fuse, {"model": net()}, {"model": "module"}),
        "replace_neurons": Entry(sf.replace_neurons, {"model": net()}, {"model": "module", "strict": "flag"}),
        "to_spiking": Entry(
            sf.to_spiking,
            {
                **{"ann": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))},
                **{"sample": torch.rand(2, 4), "tune": True, "batches": [(torch.rand(3, 4), torch.tensor([0, 1, 0]))]},
            },
            {
                **{name: NEURON[name] for name in ("reset", "reset_value", "detach_reset", "fire_on_equal", "delay")},
                **{"ann": "module", "sample": "floats", "steps": "size", "tune": "flag", "batches": "batches"},
                **{"fuse": "flag", "activation": "word", "surrogate": "surrogate", "threshold": "one number"},
            },
            {"batches": ("batches", "inputs")},
        ),
        "pack_spikes": Entry(sf.pack_spikes, {}, {"model": "module or None"}),
        "streaming": Entry(sf.streaming, {"model": net(), "sample": X}, {"model": "module", "sample": "tensor"}),
        "activity_report": Entry(
            sf.activity_report,
            {"model": net(), "sample": X},
            {
                **{"model": "module", "sample": "sample", "rasters": "options or None"},
                **dict.fromkeys(["mac_picojoule", "ac_picojoule"], "one number"),
            },
        ),
        "memory_report": Entry(
            sf.memory_report, {"model": net(), "sample": X}, {"model": "module", "sample": "sample"}
        ),
    }


def reference_entries(module: Any = sf.reference) -> dict[str, Entry]:
    return {
        "integrate_and_fire": Entry(module.integrate_and_fire, {"current": X}, {**CALL, **NEURON}),
        "leaky_integrate_and_fire": Entry(module.leaky_integrate_and_fire, {"current": X}, {**CALL, **NEURON, **LEAK}),
    }


def functional_entries() -> dict[str, Entry]:
    tensors = ("residual", "weight", "bias", "running_mean", "running_var")
    normalized = {
        **CALL,
        **NEURON,
        **LEAK,
        "tau": "number or None",
        **dict.fromkeys(tensors, "floats or None"),
        "training": "flag",
        "momentum": "one number",
        "eps": "one number",
        "process_group": "group",
    }
    return {
        **reference_entries(sf.functional),
        "batch_norm_integrate_and_fire": Entry(sf.functional.batch_norm_integrate_and_fire, {"current": X}, normalized),
    }


def surrogate_entries() -> dict[str, Entry]:
    return {
        name: Entry(shape, {}, {"gamma": "one number", "beta": "one number"})
        for name, shape in sf.surrogate.SHAPES.items()
    }


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


def network_entry(make: Callable[..., nn.Module]) -> Entry:
    """A named network's, by the names of its parameters; a narrow one where it has a width."""
    parameters = inspect.signature(make).parameters
    kinds = {name: NETWORK[name] for name in parameters if name in NETWORK}
    return Entry(make, {"width": 4} if "width" in parameters else {}, kinds)


def model_entries() -> dict[str, Entry]:
    leaky = {**LEAK, "learn_tau": "flag"}
    image = {"image_shape": "image shape", "classes": "size"}
    named = {"name": ("network",)}
    return {
        **{name: network_entry(getattr(models, name)) for name in models.names()},
        "ResidualIF": Entry(models.ResidualIF, {}, {**NEURON, **LAYER}),
        "ResidualLIF": Entry(models.ResidualLIF, {}, {**NEURON, **LAYER, **leaky}),
        "build": Entry(models.build, {"name": "digits"}, {"name": "word"}, named),
        "for_images": Entry(
            models.for_images,
            {"name": "digits", "image_shape": (1, 8, 8), "classes": 10},
            {"name": "word", **image},
            {**named, "classes": ("num_classes",), "image_shape": ("in_channels", "image_size")},
        ),
        "takes": Entry(
            models.takes, {"name": "digits", "option": "steps"}, {"name": "word"}, named, exempt=("option",)
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
        "signal_profile": Entry(
            tuning.signal_profile,
            run,
            {"model": "module", "batches": "batches", "noise": "one number", "training": "flag", "seed": "count"},
        ),
        "plot_signals": Entry(
            tuning.plot_signals, {"profiles": {}, "path": "x"}, {"profiles": "options", "path": "path"}
        ),
        "plot_profiles": Entry(
            tuning.plot_profiles, {"profiles": {}, "path": "x"}, {"profiles": "options", "path": "path"}
        ),
    }


def conversion_entries() -> dict[str, Entry]:
    ann = models.build("mnist_net", image_size=16, activation="relu")
    spiking = models.digits().eval()
    return {
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


def snntorch_entries() -> dict[str, Entry]:
    flags = ("surrogate_disable", "init_hidden", "inhibition", "learn_beta", "learn_threshold", "output", "reset_delay")
    layer = {
        **dict.fromkeys(("beta", "threshold"), "number"),
        "spike_grad": "surrogate",
        **dict.fromkeys(flags, "flag"),
        "reset_mechanism": "word",
    }
    graded = {"graded_spikes_factor": "number", "learn_graded_spikes_factor": "flag"}
    synaptic = {"alpha": "number", "learn_alpha": "flag"}
    call = {"input_": "floats", "mem": "floats or None", "steps": "steps or None"}
    made = snntorch.Leaky(beta=0.5), snntorch.Synaptic(alpha=0.5, beta=0.5)
    refused = ("state_quant",)  # but for the library's default
    return {
        "Leaky": Entry(snntorch.Leaky, {"beta": 0.5}, {**layer, **graded}, exempt=refused),
        "Synaptic": Entry(snntorch.Synaptic, {"alpha": 0.5, "beta": 0.5}, {**layer, **synaptic}, exempt=refused),
        "Leaky()": Entry(made[0].forward, {"input_": X}, call),
        "Synaptic()": Entry(made[1].forward, {"input_": X}, {**call, "syn": "floats or None"}),
        "equal_surrogate": Entry(snntorch.equal_surrogate, {"spike_grad": None}, {"spike_grad": "surrogate"}),
    }


def augmentation_entries() -> dict[str, Entry]:
    shares = {name: "one number" for name in ("brightness", "contrast", "saturation", "hue")}
    images, generator = {"images": IMAGES}, {"generator": "generator"}
    return {
        "Augmentation": Entry(
            augment.Augmentation,
            {},
            {**shares, "flip": "one number", "padding": "count", "auto": "flag", "cutout": "count"},
        ),
        "CIFAR": Entry(augment.CIFAR, images, {"images": "floats", **generator}),
        "CIFAR_STRONG": Entry(augment.CIFAR_STRONG, images, {"images": "floats", **generator}),
        "auto_augment": Entry(augment.auto_augment, images, {"images": "floats", **generator}),
        "cutout": Entry(augment.cutout, images, {"images": "floats", "size": "count", **generator}),
        "horizontal_flip": Entry(
            augment.horizontal_flip, images, {"images": "floats", "probability": "one number", **generator}
        ),
        "random_crop": Entry(augment.random_crop, images, {"images": "floats", "padding": "count", **generator}),
        "color_jitter": Entry(augment.color_jitter, images, {"images": "floats", **shares, **generator}),
    }


def data_entries() -> dict[str, Entry]:
    batches = sf.data.Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), 255.0).batches

    @functools.wraps(batches)
    def first(**given: Any) -> Any:
        return next(batches(**given))

    return {
        "check_known": Entry(sf.data.check_known, {"name": "digits"}, {"name": "word"}, {"name": ("data set",)}),
        "load": Entry(
            sf.data.load,
            {"name": "mnist", "data_dir": "."},
            {"name": "word", "data_dir": "path"},
            {"name": ("data set",)},
        ),
        "Split.batches": Entry(
            first, {"batch_size": 2}, {"batch_size": "size", "shuffle": "generator", "drop_last": "flag"}
        ),
    }


@dataclass(frozen=True)
class Table:
    """The entries of a module's public names. Some of them have names of their own: a method's, a made layer's."""

    module: ModuleType | Any
    entries: Callable[[], dict[str, Entry]]


TABLES = {
    "": Table(sf, layer_entries),
    "functional": Table(sf.functional, functional_entries),
    "reference": Table(sf.reference, reference_entries),
    "surrogate": Table(sf.surrogate, surrogate_entries),
    "losses": Table(losses, loss_entries),
    "models": Table(models, model_entries),
    "tuning": Table(tuning, tuning_entries),
    "convert": Table(convert, conversion_entries),
    "compat.snntorch": Table(snntorch, snntorch_entries),
    "data": Table(sf.data, data_entries),
    "data.augment": Table(augment, augmentation_entries),
}
ENTRIES = {f"{room}.{name}".lstrip("."): e for room, table in TABLES.items() for name, e in table.entries().items()}

# What the table leaves out, and why.
RECORDS = "a record of results, made by the package"
PARTS = "a part that the networks are made of, by the package"
LEFT_OUT = {
    **dict.fromkeys(["GammaSearch", "GradientProfile", "SignalProfile", "LearningRateRange", "ImageData"], RECORDS),
    **dict.fromkeys(
        ["FuseReport", "CheckReport", "ActivityReport", "ReplaceReport", "SpikingReport", "WeightsReport"], RECORDS
    ),
    **dict.fromkeys(["Network", "FeedForwardNet", "ResNet", "ResidualBlock", "SummedLinear", "ReLU"], PARTS),
    **dict.fromkeys(["MembraneResNet", "MembraneBlock"], PARTS),
    **dict.fromkeys(["SpikeElementWiseResNet", "SpikeElementWiseBlock"], PARTS),
    **dict.fromkeys(["BatchNorm2d", "BatchNormReLU"], "torch's own arguments, and a process group"),
    **dict.fromkeys(["names", "data_sets", "build_info", "ACTIVATIONS", "__version__"], "no arguments"),
    "Split": "its batches are in the table",
    "RLeaky": "refuses every call",
    "SpikingNetwork": "made by to_spiking",
    "DataError": "an error",
    "NeuronFactory": "a type",
    "Surrogate": "the base of the shapes",
    "functional": "a module",
    "reference": "a module",
    "surrogate": "a module",
    "augment": "a module",
    **dict.fromkeys(["to_nir", "from_nir"], "tested on their own, where nir is installed"),
    "check": "tested on its own",
    "load_weights": "tested on its own",
    "Stream": "made by streaming, and tested with it",
    "reset_state": "tested on its own",
    "detach_state": "tested on its own",
}
FREE = {"neuron", "options", "args", "kwargs", "self", "option", "unknown", "name_of"}  # of what they are passed on to


FILE = "tests/public_calls.py"


def forgotten_names(tables: dict[str, Table]) -> list[str]:
    """For each public name without an entry, what to add and where."""
    return [
        f"{table.module.__name__}.{name} is public and has no entry. Add to {table.entries.__name__}() in {FILE}\n"
        f'    "{name}": Entry({room or "sf"}.{name}, {{what a call that works is given}}, '
        f"{{{kinds_wanted(table, name)}}}),\n"
        f"each KIND one of {', '.join(map(repr, KINDS))}; or add it to LEFT_OUT there, with the reason."
        for room, table in tables.items()
        for name in table.module.__all__
        if name not in LEFT_OUT and name not in table.entries()
    ]


def kinds_wanted(table: Table, name: str) -> str:
    try:
        parameters = inspect.signature(getattr(table.module, name)).parameters
    except (TypeError, ValueError):
        return ""
    return ", ".join(f'"{parameter}": KIND' for parameter in parameters if parameter not in FREE)


def forgotten_parameters(tables: dict[str, Table]) -> list[str]:
    """For each parameter without a kind, what to add and where."""
    return [
        f"{f'{room}.{name}'.lstrip('.')} has a parameter '{parameter}' and its entry has none. Add "
        f'"{parameter}": KIND in {FILE} to its kinds in {table.entries.__name__}(), or to those of '
        f"NEURON, LEAK, LAYER, NORM, CALL or NETWORK, if it is an option of theirs; each KIND one of "
        f"{', '.join(map(repr, KINDS))}."
        for room, table in tables.items()
        for name, entry in table.entries().items()
        for parameter in inspect.signature(entry.call).parameters
        if parameter not in {*FREE, *entry.kinds, *entry.exempt}
    ]
