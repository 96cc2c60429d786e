"""The calls that compute-sanitizer is shown: they launch every kernel, and give what the CPU gives."""

from __future__ import annotations

import shutil

import host_run
import kernels as kernel_choice
import pytest
import torch

from snnfast.benchmarks import sanitize
from snnfast.benchmarks.launched import kernel, kernels

CPU = torch.device("cpu")


def test_the_command_counts_its_calls(capsys):
    assert sanitize.main(["--device", "cpu", "--kernels"]) == 0
    said = capsys.readouterr().out
    count = sum(1 for dtype in sanitize.DTYPES for _ in sanitize.calls(dtype))
    assert said.startswith(f"{count} calls, {2 * count} operations on cpu in ")
    assert 150 <= count <= 250
    assert f"of {len(sanitize.built())} none is launched on a CPU" in said


@pytest.fixture
def on_host(core_on_host, monkeypatch):
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    kernel_choice.chosen("cuda_on_host", lambda: core_on_host, monkeypatch.setattr)
    return core_on_host


def test_every_kernel_is_launched(on_host):
    host_run.launched(on_host)  # those of tests before
    sanitize.run_all(CPU)
    names = kernels(host_run.launched(on_host))
    assert sanitize.built() <= names, sanitize.covered(names)
    # sums over channels are the kernels that share memory, which racecheck is for
    assert any("channel_sum_kernel<" in name for name in names)
    assert sanitize.covered(names).startswith(f"variants: {len(sanitize.built())} of {len(sanitize.built())} launched")


def test_a_kernel_that_was_not_launched_is_named():
    missing = sorted(sanitize.built())[0]
    said = sanitize.covered(sanitize.built() - {missing})
    assert said.splitlines()[-1] == f"  not launched: {missing}"


@pytest.mark.parametrize("dtype", sanitize.DTYPES, ids=str)
def test_results_are_those_of_the_cpu(dtype, core_on_host, monkeypatch):
    wanted = [call.run(CPU) for call in sanitize.calls(dtype)]
    kernel_choice.chosen("cuda_on_host", lambda: core_on_host, monkeypatch.setattr)
    for call, expected in zip(sanitize.calls(dtype), wanted, strict=True):
        assert not (said := sanitize.differs(call.run(CPU), expected, call.normalized)), f"{call}: {said}"


def test_a_difference_is_told():
    spikes, gradient = torch.zeros(3), torch.ones(3)
    assert sanitize.differs([spikes, gradient], [spikes, gradient * (1 + 1e-6)], False) == ""
    assert "result 0 differs" in sanitize.differs([spikes + 1, gradient], [spikes, gradient], False)
    assert "result 1 differs" in sanitize.differs([spikes, gradient * 1.01], [spikes, gradient], False)
    assert "not finite" in sanitize.differs([spikes, gradient / 0], [spikes, gradient], True)


def test_names_of_kernels_are_written_as_the_source_has_them():
    space = "snnfast::portable"
    shown = (
        f"void {space}::forward_kernel<float, 4, {space}::General<float>, ({space}::Currents)2>(snnfast::ForwardCall)"
    )
    wanted = f"{space}::forward_kernel<float, 4, {space}::General<float>, {space}::Currents::any>"
    assert kernel(shown) == wanted
    assert kernel("void at::native::vectorized_elementwise_kernel<4>(int)") is None
