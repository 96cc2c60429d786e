"""Rates over the layers, and spike rasters, as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from snnfast._plots import empty_figure, plain, whole_numbers
from snnfast.activity.layers import LayerActivity

__all__ = ["raster", "rates"]


def rates(layers: Sequence[LayerActivity], path: str | os.PathLike[str]) -> None:
    """Firing rates, and the shares of silent and saturated neurons, over the layers."""
    figure = empty_figure(7.2, 6.0)
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = range(1, len(layers) + 1)
    above.plot(numbers, [row.rate for row in layers], marker="o", markersize=4)
    above.set(ylabel="spikes per neuron and step")
    above.set_ylim(bottom=0)
    below.plot(numbers, [row.silent for row in layers], marker="o", markersize=4, label="silent")
    below.plot(numbers, [row.saturated for row in layers], marker="s", markersize=4, label="fire at every step")
    below.set(xlabel="spiking layer, from the input", ylabel="share of the neurons", ylim=(-0.03, 1.03))
    below.legend(frameon=False)
    for axes in (above, below):
        plain(axes)
    whole_numbers(below.xaxis)
    figure.savefig(path, dpi=150)


def raster(spikes: Tensor, neurons: Sequence[int], label: str, path: str | os.PathLike[str]) -> None:
    """A mark for each spike of bool [T, neurons]: steps to the right, counted from 1, neurons upwards."""
    count = len(neurons)
    figure = empty_figure(7.2, min(9.0, 1.5 + 0.15 * count))
    axes = figure.subplots()
    times = [(spikes[:, place].nonzero().flatten() + 1).tolist() for place in range(count)]
    axes.eventplot(times, lineoffsets=list(range(count)), linelengths=0.8, linewidths=1.5, colors="black")
    axes.set(xlabel="step", ylabel=label, xlim=(0.5, spikes.shape[0] + 0.5), ylim=(-0.7, count - 0.3))
    if count <= 40:
        axes.set_yticks(range(count), [str(neuron) for neuron in neurons])
    else:
        axes.set_yticks([0, count - 1], [str(neurons[0]), str(neurons[-1])])
    axes.spines[["top", "right"]].set_visible(False)
    whole_numbers(axes.xaxis)
    figure.savefig(path, dpi=150)
