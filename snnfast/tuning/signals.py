"""How far a network still tells images apart, layer by layer: whether a deep one scrambles its input."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments.checks import flag, integer, number_within
from snnfast._plots import plot_over_layers
from snnfast.models.activations import BatchNormReLU, ReLU
from snnfast.tuning.trial import (
    Batches,
    SpikingLayer,
    check_batches,
    on_trial,
    passes_over,
    random_state_kept,
    reset_states,
)

__all__ = ["SignalProfile", "plot_signals", "signal_profile"]

HEALTHY, SCRAMBLED = 0.7, 0.9
"""Ratios up to which a layer carries the image, and from which on it does not: what is between is fading."""

_RELUS = (nn.ReLU, ReLU, BatchNormReLU)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SignalProfile:
    """How sensitive each layer's firing rates are to noise on the image: :func:`signal_profile`.

    * ``names``: the layers' names in the model, in the order in which a forward pass reaches them; the later calls of
      one that is called several times are ``name#2`` and so on, but for ``carry_state``, whose calls are one run.
    * ``ratios``: of each layer, the mean distance between the rates of an image and of its noisy copy over the mean
      distance between the rates of different images. Near 0 the layer tells images apart as the eye does; at 1 a noisy
      image is as far from itself as from any other: the network has scrambled it. NaN where images do not differ.
    * ``rates``: of each layer, spikes per neuron and step (of ReLUs, the mean activation).
    * ``noise``: its standard deviation, in those of the images.
    * ``images``: how many were measured.
    """

    names: tuple[str, ...]
    ratios: tuple[float, ...]
    rates: tuple[float, ...]
    noise: float
    images: int

    def verdict(self, layer: int) -> str:
        """Of the layer with this number: "healthy" (a ratio up to 0.7), "scrambled" (from 0.9 on), "fading" (between),
        "silent" (no spikes), or "constant" (the same for all images)."""
        ratio = self.ratios[layer]
        if self.rates[layer] == 0:
            return "silent"
        if math.isnan(ratio):
            return "constant"
        return "healthy" if ratio <= HEALTHY else "scrambled" if ratio >= SCRAMBLED else "fading"

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name) for name in self.names))
        lines = [f"{'layer':<{width}}  {'ratio':>6}  {'rate':>7}"]
        for place, (name, ratio, rate) in enumerate(zip(self.names, self.ratios, self.rates, strict=True)):
            shown = "-" if math.isnan(ratio) else f"{ratio:.3f}"
            lines.append(f"{name:<{width}}  {shown:>6}  {rate:>7.4f}  {self.verdict(place)}")
        verdicts = [self.verdict(place) for place in range(len(self.names))]
        lines.append(", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)))
        lines.append(
            f"distance of an image to its copy with {_percent(self.noise)} noise, over that between images "
            f"({self.images})"
        )
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes the ratios over the layer number to ``path``, as :func:`plot_signals`. Raises ImportError."""
        plot_signals({f"{_percent(self.noise)} noise": self}, path)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def plot_signals(profiles: Mapping[str, SignalProfile], path: str | os.PathLike[str]) -> None:
    """Writes the sensitivity ratio over the layer number, a curve for each profile.

    Args:
        profiles: a label for each profile.
        path: the picture's file; its ending chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: no mapping, no profile, or a file ending that matplotlib does not know.
    """
    ylabel = "distance to the noisy copy over that between images"
    plot_over_layers(profiles, SignalProfile, lambda profile: profile.ratios, path, ylabel=ylabel, ylim=(0, 1.25))


def signal_profile(
    model: nn.Module, batches: Batches, *, noise: float = 0.05, training: bool = True, seed: int = 0
) -> SignalProfile:
    """Measures, layer by layer, how much of an image is left in the firing rates; forward passes alone.

    Each batch runs twice, as it is and with Gaussian noise on it, so that both passes see as many images and the same
    random numbers; a layer's rates are its neurons' spikes, averaged over time, and distances are Euclidean. A network
    can have balanced gradients and neurons that fire, and still not learn, because what reaches its last layers no
    longer depends on the image but on every detail of it: see the guide, "When a deep network does not learn".

    Args:
        model: called as ``model(inputs)``. Its spiking layers are measured; where it has none, its ReLUs
            (``torch.nn.ReLU`` and those of :mod:`snnfast.models`, the ANN twins), by their activations.
        batches: a list or DataLoader of (inputs, targets), iterated once; floating inputs [B, ...] or, over time,
            [T, B, ...] or [B, T, ...] as the model takes them, of at least two images each. The targets are not used.
        noise: standard deviation of the noise, as a share of that of the batch's values.
        training: whether batch norms use each batch's own statistics, as they do while the network trains, rather than
            their running ones, which say nothing of a network that has not been trained. Dropout is off in both.
        seed: of the noise.

    Returns:
        The profile. Nothing of the model is changed: see :mod:`snnfast.tuning`.

    Raises:
        TypeError: not a module; batches that are an iterator or not pairs; inputs that are no floating tensor.
        ValueError: neither spiking layers nor ReLUs, or none reached; no batch; a batch of a single image, of values
            that are all the same or not finite, or of images that are all the same; a layer whose output is not
            finite; an option out of range.
    """
    check_batches(batches)
    number_within("noise", noise, above=0)
    integer("seed", seed, least=0, most=_LARGEST_SEED)
    flag("training", training)
    measured = _Distances()
    images = 0
    # on_trial leaves inference mode, which turns gradients on again.
    with on_trial(model, training=training, spiking=False) as spiking, torch.no_grad():
        layers = _layers_of(model, spiking)
        for module in model.modules():
            if isinstance(module, _DROPOUTS):
                module.eval()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for inputs, _ in passes_over(model, batches):
            scale = _spread(inputs)
            added = noise * scale * torch.randn(inputs.shape, generator=generator, dtype=scale.dtype, device="cpu")
            seen = []
            for given in (inputs, inputs + added.to(inputs)):
                reset_states(spiking)
                with random_state_kept(), _recorded(layers) as rates:
                    model(given)
                seen.append(rates)
            if not seen[0]:
                raise ValueError("the model's forward pass reaches none of its spiking layers")
            images += measured.add(inputs, *seen)
    return SignalProfile(*measured.profile(), noise=noise, images=images)


def _layers_of(model: nn.Module, spiking: Mapping[SpikingLayer, str]) -> dict[nn.Module, str]:
    """The layers to measure, with their names: spiking ones, or ReLUs where there are none."""
    if spiking:
        return {layer: name for layer, name in spiking.items()}
    named = model.named_modules()
    relus: dict[nn.Module, str] = {m: name or type(m).__name__ for name, m in named if isinstance(m, _RELUS)}
    if not relus:
        what = "no spiking layer (IF, LIF, BatchNormIF, BatchNormLIF), and no ReLU"
        raise ValueError(f"the model has {what}: {type(model).__name__}")
    return relus


def _spread(inputs: Any) -> Tensor:
    """The standard deviation of a batch's values, on the CPU; what :func:`signal_profile` raises for others."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a floating tensor, to which noise can be added, got {got}")
    if not inputs.numel():
        raise ValueError(_too_few(0))
    if not torch.isfinite(inputs).all():
        raise ValueError("inputs must be finite, got NaN or infinity")
    scale = inputs.double().std(correction=0).cpu()
    if not scale > 0:
        raise ValueError("inputs must hold images, got a batch whose values are all the same")
    return scale if inputs.dtype == torch.float64 else scale.float()


def _too_few(images: int) -> str:
    return f"a batch must have at least 2 images, between which there is a distance, got {images}"


@contextmanager
def _recorded(layers: Mapping[nn.Module, str]) -> Iterator[dict[str, Tensor]]:
    """Within, every layer leaves its rates [B, neurons] under its name, and from its second call on the number."""
    rates: dict[str, Tensor] = {}
    calls: dict[nn.Module, int] = {}

    def leave(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls[layer] = call = calls.get(layer, 0) + 1
        found = _rates(layer, output)
        if isinstance(layer, SpikingLayer) and layer.carry_state:
            # The calls are one run of the same neurons, of equally many steps each.
            name, before = layers[layer], rates.get(layers[layer])
            rates[name] = found if before is None else before + (found - before) / call
        else:
            rates[layers[layer] + (f"#{call}" if call > 1 else "")] = found

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(leave).remove)
        yield rates


def _rates(layer: nn.Module, output: Tensor) -> Tensor:
    """[B, neurons], in memory of its own: what follows in the model may write into the output."""
    found = output.double() if output.dtype == torch.float64 else output.float()
    found = found.mean(layer.time_dim) if isinstance(layer, SpikingLayer) else found.clone()
    return found.reshape(len(found), -1) if found.dim() else found.reshape(1, 1)


class _Distances:
    """Sums over batches, by layer: of distances to the noisy copy and between images, and of rates."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, float]] = {}
        self._batches: dict[str, int] = {}

    def add(self, inputs: Tensor, clean: Mapping[str, Tensor], noisy: Mapping[str, Tensor]) -> int:
        """Adds a batch; returns the number of its images."""
        images = len(next(iter(clean.values())))
        if images < 2:
            raise ValueError(_too_few(images))
        # Time may be ahead of the images, and still images are the same at every step.
        axes = [axis for axis, size in enumerate(inputs.shape[:2]) if size == images]
        if axes and all(torch.equal(inputs, inputs.narrow(axis, 0, 1).expand_as(inputs)) for axis in axes):
            raise ValueError(f"images must differ, got a batch of {images} that are all the same")
        for name, rates in clean.items():
            own = (noisy[name] - rates).double().norm(dim=1).mean().item()
            # Each pair once, by differences: products would round the small distances of alike images away.
            others = torch.pdist(rates.double()).mean().item()
            if not math.isfinite(own + others):
                raise ValueError(f"the output of {name!r} is not finite: look at the model's weights and inputs first")
            before = self._sums.get(name, (0.0, 0.0, 0.0))
            self._sums[name] = (before[0] + own, before[1] + others, before[2] + rates.double().mean().item())
            self._batches[name] = self._batches.get(name, 0) + 1
        return images

    def profile(self) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
        """Names, ratios and rates."""
        ratios = [own / others if others > 0 else math.nan for own, others, _ in self._sums.values()]
        rates = [rate / self._batches[name] for name, (_, _, rate) in self._sums.items()]
        return tuple(self._sums), tuple(ratios), tuple(rates)
