"""Firing rates, operations and energy of a network on a sample: ``snnfast.activity_report``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments.checks import integer, number_within
from snnfast._arguments.checks import path as checked_path
from snnfast._text import table
from snnfast.activity import pictures
from snnfast.activity.counts import SpikeCounts
from snnfast.activity.layers import Firing, LayerActivity, indices, kept_neurons
from snnfast.activity.maps import MapActivity, Operations
from snnfast.memory.report import check_model_and_sample
from snnfast.trial import on_trial, reset_states

__all__ = ["ActivityReport", "activity_report"]

MAC_PICOJOULE, AC_PICOJOULE = 4.6, 0.9
"""Of a float32 multiply-accumulate and a float32 addition in 45 nm (Horowitz 2014, "Computing's energy problem")."""


@dataclass(frozen=True)
class ActivityReport:
    """What :func:`snnfast.activity_report` found; ``str()`` of it is a table.

    Attributes:
        layers: the spiking layers, in the order in which a forward pass reaches them.
        maps: the linear maps (Conv1d, Conv2d, Conv3d, Linear and what is made of them), in that order.
        images: B, over all inputs of the sample.
        mac_picojoule, ac_picojoule: the energy of a multiply-accumulate and of a synaptic operation.
        unknown: matrix products and convolutions outside of the maps, by torch's name: they are in no other figure.
        kept_neurons, kept_spikes: what :meth:`raster` shows: by the layer's name the neurons, and their spikes, bool
            [T, images, neurons] on the CPU.
    """

    layers: tuple[LayerActivity, ...]
    maps: tuple[MapActivity, ...]
    images: int
    mac_picojoule: float
    ac_picojoule: float
    unknown: dict[str, int]
    kept_neurons: dict[str, list[int]] = field(repr=False)
    kept_spikes: dict[str, Tensor] = field(repr=False, compare=False)

    @property
    def synaptic_operations(self) -> float:
        """Per image, of all maps that spikes enter."""
        return sum(row.synaptic_operations for row in self.maps) / self.images

    @property
    def multiply_accumulates(self) -> float:
        """Per image, of all maps that other numbers enter."""
        return sum(row.multiply_accumulates for row in self.maps) / self.images

    @property
    def twin_multiply_accumulates(self) -> float:
        """Per image, of all maps of the ANN twin."""
        return sum(row.twin_multiply_accumulates for row in self.maps) / self.images

    @property
    def picojoules(self) -> float:
        """Estimated for an image, of synaptic operations and multiply-accumulates and of nothing else."""
        return self.ac_picojoule * self.synaptic_operations + self.mac_picojoule * self.multiply_accumulates

    @property
    def twin_picojoules(self) -> float:
        """Estimated for an image in the ANN twin, of its multiply-accumulates."""
        return self.mac_picojoule * self.twin_multiply_accumulates

    @property
    def ratio(self) -> float:
        """``picojoules / twin_picojoules``: below 1 the spiking network needs less. NaN where the twin needs none."""
        return self.picojoules / self.twin_picojoules if self.twin_picojoules else float("nan")

    def __str__(self) -> str:
        heads = ("spiking layer", "", "neurons", "steps", "rate", "silent", "saturated")
        layers = [
            (row.name, row.kind, f"{row.neurons:,}", str(row.steps), f"{row.rate:.4f}", *_shares(row))
            for row in self.layers
        ]
        lines = table([heads, *layers], left=2)
        if self.maps:
            lines += ["", *self._lines_of_maps()]
        if self.unknown:
            products = ", ".join(f"{count} × {name}" for name, count in self.unknown.items())
            lines.append(f"not counted, outside of linear maps: {products}")
        return "\n".join(lines)

    def _lines_of_maps(self) -> list[str]:
        heads = ("linear map, per image", "", "input", "synaptic operations", "multiply-accumulates", "of the ANN twin")
        rows = []
        for row in self.maps:
            operations = row.synaptic_operations if row.spiking else None
            macs = row.multiply_accumulates if row.multiply_accumulates or not row.spiking else None
            cells = _per_image(operations, macs, row.twin_multiply_accumulates, images=self.images)
            rows.append((row.name, row.kind, "spikes" if row.spiking else "numbers", *cells))
        all_maps = (self.synaptic_operations, self.multiply_accumulates, self.twin_multiply_accumulates)
        head, *lines = table([heads, *rows, ("total", "", "", *_per_image(*all_maps))], left=3)
        rule = "-" * len(head)
        energy = (
            f"energy of an image: {_joules(self.picojoules)}, of the ANN twin {_joules(self.twin_picojoules)}, "
            f"ratio {self.ratio:.3g}"
        )
        how = (
            f"({self.ac_picojoule:g} pJ a synaptic operation, {self.mac_picojoule:g} pJ a multiply-accumulate; mean of "
            f"{self.images} image{'s' if self.images > 1 else ''})"
        )
        return [head, rule, *lines[:-1], rule, lines[-1], "", energy, how]

    def raster(self, layer: str, neurons: Sequence[int] | None = None, image: int = 0) -> Tensor:
        """The spikes of some neurons of one layer, bool [T, neurons], on the CPU.

        Args:
            layer: one that ``rasters`` of :func:`snnfast.activity_report` named.
            neurons: of those that it named, in the order wanted; default all of them.
            image: of the sample, over all its inputs.

        Raises:
            TypeError, ValueError: a layer or neurons whose spikes were not kept, an image that there is not.
        """
        if layer not in self.kept_spikes:
            kept = ", ".join(map(repr, self.kept_spikes)) or "none: name the layer in activity_report's rasters"
            raise ValueError(f"layer must be one whose spikes were kept ({kept}), got {layer!r}")
        own, spikes = list(self.kept_neurons[layer]), self.kept_spikes[layer]
        wanted = own if neurons is None else indices("neurons", neurons)
        missing = [neuron for neuron in wanted if neuron not in own]
        if missing:
            raise ValueError(f"neurons must be among those whose spikes were kept at {layer!r}, got {missing[0]}")
        integer("image", image, least=0, most=spikes.shape[1] - 1)
        return spikes[:, image, [own.index(neuron) for neuron in wanted]]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes rates, and shares of silent and saturated neurons, over the layers; ``path`` chooses the format.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: a file ending that matplotlib does not know.
        """
        pictures.rates(self.layers, checked_path("path", path))

    def plot_raster(
        self, path: str | os.PathLike[str], layer: str, neurons: Sequence[int] | None = None, image: int = 0
    ) -> None:
        """Writes what :meth:`raster` gives as a picture, a line for each neuron; raises what that and `plot` raise."""
        spikes = self.raster(layer, neurons, image)
        labels = self.kept_neurons[layer] if neurons is None else indices("neurons", neurons)
        pictures.raster(spikes, labels, f"neuron of {layer}", checked_path("path", path))


def _shares(row: LayerActivity) -> tuple[str, str]:
    return f"{row.silent:.1%}", f"{row.saturated:.1%}"


def _per_image(*sums: float | None, images: int = 1) -> tuple[str, ...]:
    return tuple("" if value is None else f"{value / images:,.0f}" for value in sums)


def _joules(picojoules: float) -> str:
    """With a unit: "512 pJ", "1.50 nJ", "120 µJ"."""
    value, units = picojoules, ["pJ", "nJ", "µJ", "mJ", "J"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.3g} {units[0]}"


def _inputs(model: object, sample: object) -> list[tuple[Any, ...]]:
    """The arguments of each pass; TypeError or ValueError for what is none, or empty, or not finite."""
    given = sample if isinstance(sample, list) else [sample]
    if not given:
        check_model_and_sample(model, torch.zeros(1))
        raise ValueError("sample must hold at least one input, got an empty list")
    for one in given:
        check_model_and_sample(model, one)
        for tensor in one if isinstance(one, tuple) else (one,):
            if not isinstance(tensor, Tensor):
                continue
            if not tensor.numel():
                raise ValueError(f"sample must not be empty, got shape {list(tensor.shape)}")
            if not torch.isfinite(tensor).all():
                what = "NaN" if tensor.isnan().any() else "infinite values"
                raise ValueError(f"sample must be finite numbers, got {what}")
    return [one if isinstance(one, tuple) else (one,) for one in given]


def activity_report(
    model: nn.Module,
    sample: Tensor | tuple[Any, ...] | list[Any],
    *,
    rasters: Mapping[str, Sequence[int]] | None = None,
    mac_picojoule: float = MAC_PICOJOULE,
    ac_picojoule: float = AC_PICOJOULE,
) -> ActivityReport:
    """Measures how much a spiking network fires and computes: ``print(snnfast.activity_report(model, sample))``.

    The model runs on the sample in evaluation mode, without gradients and uncompiled, from carried states at rest.
    Parameters, gradients, buffers, modes, carried states and the random state are left as they were. Forward hooks of
    the model run; what else it changes in forward stays changed.

    * Spiking layers: firing rates, and the shares of neurons that never fire and that fire at every step.
    * Linear maps: what spikes enter, through whatever is linear in them (pooling, sums and means over time, scaling by
      a number), counts as synaptic operations, an accumulation for each spike and each output that it reaches: 0.9 pJ.
      What other numbers enter counts as multiply-accumulates, as often as it is computed: a map ahead of neurons that
      hold its current, once. So does a sample of zeros and ones, events, count as spikes, and one of pixels not.
    * The ANN twin computes each map once, in multiply-accumulates, without time axis. Which axes are time and batch is
      read from the sizes of the first spiking layer's output.

    Batch norms, biases, pooling, the neurons themselves and memory accesses are in none of the figures, and nor are
    products of tensors outside of such modules (attention): ``unknown`` has these.

    Args:
        model: any module with spiking layers.
        sample: its input, a tensor [B, ...] or [T, B, ...] as it takes them; a tuple of its arguments; or a list of
            such inputs, run one after another, which must have the same number of steps and sizes.
        rasters: which spikes to keep for :meth:`ActivityReport.raster`: by the layer's name the numbers of neurons, in
            the order of memory of one image [C, H, W], from 0.
        mac_picojoule: energy of a multiply-accumulate, pJ.
        ac_picojoule: energy of a synaptic operation, pJ.

    Returns:
        An :class:`~snnfast.activity.report.ActivityReport`; its ``str()`` is a table.

    Raises:
        TypeError: model, sample, rasters or an energy of another type.
        ValueError: a model without spiking layers, or whose forward pass reaches none; an empty sample, or one with NaN
            or infinite values; inputs of different sizes; rasters of a layer or neuron that there is not; an energy
            that is negative or not finite; a lazy module that was not run yet.
    """
    inputs = _inputs(model, sample)
    energies = [
        number_within(name, value, least=0.0)
        for name, value in (("mac_picojoule", mac_picojoule), ("ac_picojoule", ac_picojoule))
    ]
    return _measured(getattr(model, "_orig_mod", model), inputs, rasters, *energies)


def _measured(
    model: nn.Module, inputs: list[tuple[Any, ...]], rasters: object, mac_picojoule: float, ac_picojoule: float
) -> ActivityReport:
    with on_trial(model, training=False) as layers, torch.no_grad():
        keep = kept_neurons(rasters, layers)
        counts = SpikeCounts()
        firing = Firing(layers, keep, counts.mark)
        names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        operations = Operations(names, counts, firing)
        images = 0
        for arguments in inputs:
            reset_states(layers)
            # The operations are resolved while the firing still knows its pass.
            with firing.one_pass(), operations.one_pass(), counts:
                model(*arguments)
            images += firing.batch
        found = firing.layers()
        if not found:
            raise ValueError("the model's forward pass reaches none of its spiking layers")
        return ActivityReport(
            layers=found,
            maps=operations.maps(),
            images=images,
            mac_picojoule=mac_picojoule,
            ac_picojoule=ac_picojoule,
            unknown=dict(counts.unknown),
            kept_neurons=keep,
            kept_spikes=firing.rasters(),
        )
