"""What deep networks do with an image: the signal before training, and how neurons fire after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from snnfast import activity_report
from snnfast.data import Split
from snnfast.models import Network
from snnfast.tuning import SignalProfile, signal_profile

from .experiment import Plot, Table
from .workbench import SERIES, dress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def profiled(network: Network, split: Split, images: int) -> SignalProfile:
    """The signal of a network that has not been trained, on the first images of a split."""
    return signal_profile(network, [split[:images]])


def signals(profiles: Mapping[str, SignalProfile]) -> tuple[Table, Plot]:
    """Ratios and rates of every layer, and the ratios as curves."""
    rows = [
        [kind, place, name, None if math.isnan(ratio) else ratio, rate]
        for kind, profile in profiles.items()
        for place, (name, ratio, rate) in enumerate(
            zip(profile.names, profile.ratios, profile.rates, strict=True), start=1
        )
    ]
    title = "The signal before training: distance of an image to its noisy copy over that between images"
    return (
        Table("signals", title, ("network", "number", "layer", "ratio", "rate or mean activation"), rows),
        Plot("signals", title, _drawing({kind: profile.ratios for kind, profile in profiles.items()}, "ratio", 1.0)),
    )


def rates(networks: Mapping[str, Network], split: Split, images: int) -> tuple[Table, Plot]:
    """How the neurons of trained networks fire on the first images of a split."""
    found = {kind: activity_report(network, split[:images][0]).layers for kind, network in networks.items()}
    rows = [
        [kind, place, layer.name, layer.rate, layer.silent, layer.saturated]
        for kind, layers in found.items()
        for place, layer in enumerate(layers, start=1)
    ]
    title = "Firing rates after training, and the shares of neurons that never fire and that always do"
    curves = {kind: [layer.rate for layer in layers] for kind, layers in found.items()}
    return (
        Table("rates", title, ("network", "number", "layer", "rate", "silent", "saturated"), rows),
        Plot("rates", "Firing rates after training", _drawing(curves, "spikes per neuron and step")),
    )


def _drawing(curves: Mapping[str, Any], ylabel: str, marked: float | None = None) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (kind, values), colour in zip(curves.items(), SERIES, strict=False):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, color=colour, label=kind)
        if marked is not None:
            axes.axhline(marked, color="#7c8794", linestyle="--", linewidth=1)
        dress(axes, xlabel="neuron layer, from the input", ylabel=ylabel, legend=True)

    return draw
