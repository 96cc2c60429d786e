"""A user's script, as a type checker reads it: what each call gives, and what is an error before anything runs.

``tests/test_typing.py`` runs it, and mypy on it. Each ``type: ignore`` is an error that mypy must find.
"""
# mypy: warn-unused-ignores, disallow-untyped-calls, disallow-untyped-defs, disallow-any-generics, strict-equality

from __future__ import annotations

from typing import Any, assert_type

import torch
from torch import Tensor, nn

import snnfast as sf
from snnfast import models, training
from snnfast.data import ImageData, load

CURRENT = torch.rand(4, 2, 3, 5)
HELD = torch.rand(2, 3, 5)


def layers() -> None:
    neuron = sf.LIF(tau=3.0, threshold=torch.ones(3), learn_tau=True, surrogate=sf.surrogate.Triangle(gamma=2.0))
    assert_type(neuron(CURRENT), Tensor)
    assert_type(sf.IF(reset="soft")(HELD, steps=4), Tensor)
    assert_type(sf.BatchNormIF(3)(CURRENT, residual=CURRENT), Tensor)
    assert_type(sf.BatchNormLIF(3, eps=1e-3, tau=4.0)(HELD, steps=4), Tensor)
    assert_type(sf.OverTime(nn.ReLU())(CURRENT), Tensor)
    assert_type(sf.Readout("mean")(CURRENT), Tensor)
    assert_type(neuron.threshold, float | Tensor)
    assert_type(neuron.tau, float | Tensor)
    neuron.threshold = 0.5
    neuron.surrogate = sf.surrogate.FastSigmoid(gamma=5.0)
    assert_type(sf.surrogate.FastSigmoid().gamma, float)
    network: nn.Module = nn.Sequential(sf.OverTime(nn.Linear(5, 5)), sf.IF(carry_state=True), sf.Readout())
    sf.reset_state(network)
    sf.detach_state(network)


def functions(potential: bool) -> None:
    v0 = torch.zeros(2, 3, 5)
    assert_type(sf.functional.integrate_and_fire(CURRENT), tuple[Tensor, Tensor])
    assert_type(sf.functional.integrate_and_fire(CURRENT, v0, return_potential=False), tuple[Tensor, Tensor])
    assert_type(sf.functional.integrate_and_fire(HELD, steps=4, return_potential=True), tuple[Tensor, Tensor, Tensor])
    assert_type(sf.functional.integrate_and_fire(CURRENT, return_potential=potential), tuple[Tensor, ...])
    leaky = sf.functional.leaky_integrate_and_fire
    assert_type(leaky(CURRENT, tau=3.0), tuple[Tensor, Tensor])
    assert_type(leaky(CURRENT, v0, decay_input=False, return_potential=True), tuple[Tensor, Tensor, Tensor])
    assert_type(leaky(CURRENT, return_potential=potential), tuple[Tensor, ...])
    normalized = sf.functional.batch_norm_integrate_and_fire
    assert_type(normalized(CURRENT, training=True), tuple[Tensor, Tensor])
    assert_type(normalized(CURRENT, training=True, return_potential=True), tuple[Tensor, Tensor, Tensor])
    assert_type(normalized(CURRENT, training=True, return_potential=potential), tuple[Tensor, ...])
    spikes, last = sf.functional.integrate_and_fire(CURRENT)
    assert_type(spikes, Tensor)
    assert_type(last, Tensor)
    assert_type(sf.reference.integrate_and_fire(CURRENT), tuple[Tensor, Tensor])
    assert_type(sf.reference.integrate_and_fire(CURRENT, return_potential=True), tuple[Tensor, Tensor, Tensor])


def tools() -> None:
    network = nn.Sequential(sf.OverTime(nn.BatchNorm1d(3)), sf.IF())
    report = sf.fuse(network)
    assert_type(report, sf.FuseReport)
    assert_type([entry.neuron for entry in report.fused], list[str])
    assert_type([entry.reason for entry in report.left], list[str])
    spiking = sf.to_spiking(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.rand(2, 4), steps=2)
    assert_type(spiking, sf.SpikingNetwork)
    assert_type(spiking(torch.rand(2, 4), steps=3), Tensor)
    assert_type(spiking.report, sf.SpikingReport)
    with sf.pack_spikes(network) as packed:
        network(CURRENT)
    assert_type(packed, sf.pack_spikes)
    assert_type(packed.kept_bytes, int)
    assert_type(packed.by_layer, dict[str, int])
    assert_type(sf.check(network, CURRENT), sf.CheckReport)
    activity = sf.activity_report(network, [CURRENT], rasters={"0.module": [0, 2]}, ac_picojoule=1.0)
    assert_type(activity, sf.ActivityReport)
    assert_type([row.rate for row in activity.layers], list[float])
    assert_type(activity.raster("0.module"), Tensor)
    assert_type(sf.build_info(), dict[str, Any])


def networks() -> None:
    assert_type(models.names(), tuple[str, ...])
    assert_type(models.build("digits", steps=4), nn.Module)
    assert_type(models.takes("digits", "steps"), bool)
    assert_type(models.digits(steps=4), models.DigitsNet)
    assert_type(models.plain_net(layers=3, width=2, image_size=8, threshold=0.5), models.FeedForwardNet)
    assert_type(models.resnet18(width=2), models.ResNet)


def training_runs() -> None:
    options = training.TrainOptions(model="digits", epochs=1, lr="find", gamma=2.0, eval_steps=(4, 8))
    assert_type(options, training.TrainOptions)
    assert_type(training.TrainOptions.for_data("digits", epochs=2), training.TrainOptions)
    assert_type(options.lr, float | str)
    assert_type(options.clip, float | None)
    data = load("digits")
    assert_type(data, ImageData)
    assert_type(data.image_shape, tuple[int, int, int])
    assert_type(next(data.train.batches(8)), tuple[Tensor, Tensor])


def never_called() -> None:
    sf.IF(thresold=0.5)  # type: ignore[arg-type]
    sf.IF(threshold="high")  # type: ignore[arg-type]
    sf.IF(1.0, "soft")  # type: ignore[call-arg]
    sf.IF(tau=2.0)  # type: ignore[arg-type]
    sf.BatchNormIF("3")  # type: ignore[arg-type]
    sf.IF()(CURRENT, steps="4")  # type: ignore[arg-type]
    sf.functional.integrate_and_fire(CURRENT, tau=2.0)  # type: ignore[call-overload]
    sf.functional.leaky_integrate_and_fire([1.0])  # type: ignore[call-overload]
    sf.surrogate.Triangle(2.0)  # type: ignore[call-arg]
    sf.fuse([])  # type: ignore[arg-type]
    sf.to_spiking(nn.ReLU(), [1.0])  # type: ignore[arg-type]
    models.plain_net(layers="3")  # type: ignore[arg-type]
    training.TrainOptions(epoch=1)  # type: ignore[call-arg]


if __name__ == "__main__":
    layers()
    functions(True)
    tools()
    networks()
    training_runs()
