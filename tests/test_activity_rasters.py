"""Rasters and pictures of snnfast.activity_report, and what it refuses."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from activity_cases import SAMPLE, OwnLoop, currents, tiny
from torch import Tensor, nn

import snnfast as sf
from snnfast.activity import ActivityReport


def test_a_raster_has_the_spikes_of_the_neurons_that_were_named() -> None:
    current = currents(5, 3, 2, 4)
    model = nn.Sequential(sf.IF())
    report = sf.activity_report(model, [current, current.flip(0)], rasters={"0": [7, 2, 3]})
    spikes = current.flatten(2) > 0
    assert torch.equal(report.raster("0"), spikes[:, 0][:, [7, 2, 3]])
    assert torch.equal(report.raster("0", [3, 7], image=2), spikes[:, 2][:, [3, 7]])
    assert torch.equal(report.raster("0", torch.tensor([2]), image=4), spikes.flip(0)[:, 1][:, [2]])
    assert report.raster("0").dtype == torch.bool
    assert report.kept_spikes["0"].shape == (5, 6, 3)  # nothing of the others is kept
    carried = sf.activity_report(OwnLoop(), current.flatten(2)[..., :4], rasters={"neuron": range(5)})
    assert carried.raster("neuron").shape == (5, 5)


def test_rasters_of_what_was_not_kept_are_refused() -> None:
    report = sf.activity_report(tiny(), SAMPLE, rasters={"3": [0, 4]})
    for wrong, message in (
        ({"layer": "1"}, r"layer must be one whose spikes were kept \('3'\), got '1'"),
        ({"layer": "3", "neurons": [1]}, r"neurons must be among those whose spikes were kept at '3', got 1"),
        ({"layer": "3", "neurons": []}, "neurons must be at least one"),
        ({"layer": "3", "neurons": "0"}, "neurons must be the numbers of neurons"),
        ({"layer": "3", "image": 3}, "image must be at most 2, got 3"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            report.raster(**wrong)
    with pytest.raises(ValueError, match="none: name the layer in activity_report's rasters"):
        sf.activity_report(tiny(), SAMPLE).raster("3")


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = sf.IF()

    def forward(self, current: Tensor) -> Tensor:
        return current


NAN, INFINITE = SAMPLE.clone(), SAMPLE.clone()
NAN[0, 0, 0, 0, 0], INFINITE[0, 0, 0, 0, 0] = torch.nan, torch.inf
SAMPLES = {
    "no tensor": (3, TypeError, "sample must be a tensor, or a tuple of the model's arguments, got int"),
    "no inputs": ([], ValueError, "sample must hold at least one input, got an empty list"),
    "an empty batch": (SAMPLE[:, :0], ValueError, r"sample must not be empty, got shape \[4, 0, 2, 4, 4\]"),
    "no steps": (SAMPLE[:0], ValueError, r"sample must not be empty, got shape \[0, 3, 2, 4, 4\]"),
    "NaN": ([SAMPLE, NAN], ValueError, "sample must be finite numbers, got NaN"),
    "infinite": ((INFINITE,), ValueError, "sample must be finite numbers, got infinite values"),
    "other steps": ([SAMPLE, SAMPLE[:2]], ValueError, "sample must be of one number of steps, got 4 and 2 at '1'"),
}
MODELS = {
    "no module": ([], TypeError, "model must be a torch.nn.Module, got list"),
    "no spiking layer": (nn.Linear(2, 2), ValueError, r"the model has no spiking layer \(IF, LIF, "),
    "none reached": (Unreached(), ValueError, "the model's forward pass reaches none of its spiking layers"),
    "lazy": (nn.Sequential(nn.LazyLinear(3), sf.IF()), ValueError, "model must be initialised, got one whose 0.weight"),
}
OPTIONS = {
    "rasters": ({"rasters": [1]}, TypeError, "rasters must be a mapping of layer names to neurons, got list"),
    "an unknown layer": ({"rasters": {"conv": [0]}}, ValueError, "rasters must name spiking layers, 1, 3, got 'conv'"),
    "a layer once more": ({"rasters": {"1#2": [0]}}, ValueError, "name layers that the model reaches, got '1#2'"),
    "a neuron too far": ({"rasters": {"3": [0, 5]}}, ValueError, "of the layer, got 5 for the 5 of '3'"),
    "a neuron below 0": ({"rasters": {"3": [-1]}}, ValueError, r"rasters\['3'\] must not be negative, got -1"),
    "no neuron": ({"rasters": {"3": []}}, ValueError, r"rasters\['3'\] must be at least one neuron"),
    "half a neuron": ({"rasters": {"3": [0.5]}}, TypeError, r"rasters\['3'\] must be an int, got float"),
    "less than no energy": ({"mac_picojoule": -1}, ValueError, "mac_picojoule must be finite and not negative"),
    "infinite energy": ({"ac_picojoule": torch.inf}, ValueError, "ac_picojoule must be finite and not negative"),
    "energy NaN": ({"ac_picojoule": torch.nan}, ValueError, "ac_picojoule must be finite and not negative"),
    "energy in words": ({"mac_picojoule": "4.6"}, TypeError, "mac_picojoule must be a number, got str"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_sample_that_cannot_be_measured_is_refused(case: str) -> None:
    sample, error, message = SAMPLES[case]
    with pytest.raises(error, match=message):
        sf.activity_report(tiny(), sample)


def test_inputs_of_different_sizes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"sample must be of one size, got \[2, 4, 4\] and \[1, 4, 4\] neurons at 'IF'"
    ):
        sf.activity_report(sf.IF(), [SAMPLE, SAMPLE[:, :, :1]])


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_measured_is_refused(case: str) -> None:
    model, error, message = MODELS[case]
    with pytest.raises(error, match=message):
        sf.activity_report(model, SAMPLE)


@pytest.mark.parametrize("case", OPTIONS)
def test_wrong_options_are_refused_by_name(case: str) -> None:
    options, error, message = OPTIONS[case]
    with pytest.raises(error, match=message):
        sf.activity_report(tiny(), SAMPLE, **options)


def test_pictures_are_written_without_pyplot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sys.modules.pop("matplotlib.pyplot", None)
    report: ActivityReport = sf.activity_report(tiny(), SAMPLE, rasters={"1": range(48), "3": [0, 4]})
    written = [tmp_path / name for name in ("rates.svg", "raster.svg", "all.png", "two.png")]
    report.plot(written[0])
    report.plot_raster(written[1], "3")
    report.plot_raster(written[2], "1", image=2)
    report.plot_raster(str(written[3]), "1", [5, 6])
    assert all(file.stat().st_size > 1000 for file in written)
    assert len({file.read_bytes() for file in written}) == 4
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(TypeError, match="path must be a path"):
        report.plot(3)


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = sf.activity_report(tiny(), SAMPLE, rasters={"3": [0]})
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (lambda: report.plot(tmp_path / "a.png"), lambda: report.plot_raster(tmp_path / "a.png", "3")):
        with pytest.raises(ImportError, match=r"matplotlib.*python -m pip install 'snnfast\[plots\]'"):
            draw()


def test_energies_are_shown_with_their_unit() -> None:
    net = nn.Sequential(sf.IF(), sf.OverTime(nn.Linear(3, 1, bias=False)))
    current = torch.full((1, 1, 3), 2.0)
    shown = [str(sf.activity_report(net, current, ac_picojoule=pj)) for pj in (1.0, 1e3, 2e6, 5e12)]
    for text, energy in zip(shown, ("3 pJ", "3 nJ", "6 µJ", "15 J"), strict=True):
        assert f"energy of an image: {energy}, of the ANN twin 13.8 pJ" in text
    assert all(a != b for a, b in pairwise(shown))
