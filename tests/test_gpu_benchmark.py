"""The benchmark of the kernels alone: checked before it is timed, on disk after every case, bytes as designed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snnfast import backends
from snnfast.benchmarks import gpu, gpu_cases, measure, predicted, rows
from snnfast.benchmarks.cases import Case
from snnfast.benchmarks.neuron import Neuron

CPU = torch.device("cpu")
SOME = ["--case", "if-10", "--case", "bn-10-bfloat16", "--case", "held-10", "--case", "beside-4"]


def run(folder: Path, *more: str, code: int = 0) -> dict:
    arguments = ["--device", "cpu", "--small", "--out", str(folder), *more]
    assert gpu.main(arguments) == code
    return json.loads((folder / "results.json").read_text())


def test_a_run_leaves_results_a_table_and_rows(tmp_path):
    results = run(tmp_path, *SOME, "--append", str(tmp_path))
    assert results["complete"] and [case["name"] for case in results["cases"]] == ["if-10", "bn-10-bfloat16", "held-10"]
    for case in results["cases"]:
        assert case["agrees"] and case["copy"]["bytes"] == 2 * case["elements"] * (
            2 if "bfloat" in case["dtype"] else 4
        )
        for one in case["passes"].values():
            assert one["bytes_per_second"] == pytest.approx(one["bytes"] / one["time"]["median"])
            assert one["fraction"] == pytest.approx(one["bytes_per_second"] / case["copy"]["bytes_per_second"])
            assert one["predicted"] is None
    assert [case["name"] for case in results["beside"]] == ["beside-4"]
    assert results["per_call"]["IF"]["median"] > 0
    table = (tmp_path / "table.txt").read_text()
    assert "bn-10-bfloat16" in table and "naive loop" in table
    lines = (tmp_path / "gpu.csv").read_text().splitlines()
    assert tuple(lines[0].split(",")) == rows.KINDS["gpu"] and len(lines) == 1 + 3 * 3


def test_results_are_on_disk_after_every_case(tmp_path, monkeypatch):
    """Whoever is killed has written what came before."""
    found: list[list[str]] = []

    def dies(case: Case, device: torch.device) -> dict:
        file = tmp_path / "results.json"
        found.append([one["name"] for one in json.loads(file.read_text())["cases"]] if file.exists() else [])
        if case.name == "bn-10":
            raise KeyboardInterrupt
        return measured(case, device)

    measured = gpu.measured
    monkeypatch.setattr(gpu, "measured", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--case", "if-10", "--case", "bn-10")
    assert found == [[], ["if-10"]]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [case["name"] for case in results["cases"]] == ["if-10"] and not results["complete"]


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    find = gpu.find

    def other_threshold(name):
        made = find(name)
        if name != "naive":
            return made
        return replace(made, make=lambda neuron, device: made.make(Neuron(neuron.kind, {"threshold": 1.5}), device))

    monkeypatch.setattr(gpu, "find", other_threshold)
    results = run(tmp_path, "--case", "if-10", code=1)
    (case,) = results["cases"]
    assert case["agrees"] is False and "passes" not in case
    assert "WRONG if-10: differs: the spikes" in (tmp_path / "table.txt").read_text()


def test_a_case_that_fails_leaves_the_others(tmp_path, monkeypatch):
    measured = gpu.measured

    def fails(case: Case, device: torch.device) -> dict:
        if case.name == "if-10":
            raise RuntimeError("out of memory\nand more")
        return measured(case, device)

    monkeypatch.setattr(gpu, "measured", fails)
    results = run(tmp_path, "--case", "if-10", "--case", "bn-10", code=1)
    assert [case["name"] for case in results["cases"]] == ["bn-10"]
    assert results["failed"]["if-10"].startswith("RuntimeError: out of memory")


def test_no_case_is_begun_without_time_for_it(tmp_path):
    results = run(tmp_path, "--case", "if-10", "--case", "beside-4", "--seconds", "0.001")
    assert results["left_out"] == ["if-10", "beside-4"] and not results["complete"]
    assert "no time left for if-10, beside-4" in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize("arguments", [["--case", "no-such"], ["--device", "abacus"]], ids=" ".join)
def test_wrong_arguments_are_told_what_there_is(tmp_path, capsys, arguments):
    assert gpu.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert ("if-10" if "--case" in arguments else "abacus") in said and not (tmp_path / "out").exists()


def test_bytes_of_the_passes_are_those_of_the_design():
    def per_element(dtype=torch.float32, steps=10, kind="IF", **more):
        neuron = Neuron(kind, {"num_features": 4} if kind != "IF" else {})
        case = Case("a", "b", (steps, 2, 4, 3, 4), dtype=dtype, neuron=neuron, **more)
        return {name: moved / case.elements for name, moved in gpu.bytes_by_pass(case).items()}

    assert per_element() == {"forward": 8, "backward": 12, "training": 20}
    assert per_element(torch.bfloat16) == {"forward": 4, "backward": 6, "training": 10}
    # a checkpoint of 4 bytes at every sixteenth step is written by the forward pass in training, and read
    assert per_element(steps=32) == {"forward": 8, "backward": 12.25, "training": 20.5}
    assert per_element(kind="BatchNormIF") == {"forward": 12, "backward": 20, "training": 32}
    assert per_element(torch.bfloat16, kind="BatchNormIF")["training"] == 16
    assert per_element(kind="BatchNormIF", block="residual")["training"] == 48


def test_cases_are_past_any_cache_and_fit_the_memory():
    assert len({case.name for case in (*gpu_cases.LARGE, *gpu_cases.BESIDE)}) == len(gpu_cases.LARGE + gpu_cases.BESIDE)
    for case in gpu_cases.LARGE:
        assert 30e6 < case.elements * case.dtype.itemsize < 1.2e9
    assert {case.time_steps for case in gpu_cases.LARGE} == {4, 10, 16, 64}


def test_channels_last_cases_have_all_tensors_so():
    case = gpu_cases.small(next(case for case in gpu_cases.LARGE if case.channels_last))
    workload = measure.Workload.of(case, CPU)
    for tensor in (*workload.inputs, workload.gradient):
        assert tensor.shape == case.shape and tensor.stride(2) == 1


PREDICTIONS = "kernel,architecture,fraction\n"


def test_predictions_are_read_where_there_are_some(tmp_path):
    assert predicted.read(tmp_path / "nowhere") == {} and predicted.read(tmp_path) == {}
    (tmp_path / "forward.csv").write_text(PREDICTIONS + "k1,sm_90,0.9\nk1,80,0.5\n")
    (tmp_path / "backward.csv").write_text(PREDICTIONS + "k2,90,0.7\nk3,90,\n")
    assert predicted.read(tmp_path, "90") == {"k1": 0.9, "k2": 0.7}
    assert predicted.read(tmp_path / "forward.csv", "80") == {"k1": 0.5}


def test_a_prediction_is_told_beside_what_was_measured(tmp_path, monkeypatch):
    """Of a training pass, from its two kernels' and the bytes that each moves."""
    forward, backward = (next(iter(backends.core.variant_names(way, 0))) for way in (0, 1))
    kernels = iter([{forward}, {backward, "snnfast::portable::channel_sum_kernel<float>"}])
    monkeypatch.setattr(gpu, "launched", lambda work, device: next(kernels))
    file = tmp_path / "table.csv"
    file.write_text(f'kernel,fraction\n"{forward}",0.8\n"{backward}",0.6\n')
    (case,) = run(tmp_path, "--case", "if-10", "--predicted", str(file))["cases"]
    shares = {name: one["predicted"] for name, one in case["passes"].items()}
    assert shares == {"forward": 0.8, "backward": 0.6, "training": pytest.approx(20 / (8 / 0.8 + 12 / 0.6))}
    assert case["passes"]["forward"]["kernels"] == [forward]


def test_what_cannot_be_used_is_found_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "costs_of_a_call", lambda *arguments: pytest.fail("measured"))
    table = tmp_path / "table.csv"
    table.write_text("kernel,fraction\nforward<1>,abc\n")
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "out")]
    for arguments, said in (
        ([*out, "--small", "--predicted", str(table)], f"{table} is no table of predictions"),
        (["--out", str(tmp_path / "file" / "deeper"), "--small"], "cannot be written"),
        ([*out, "--small", "--case", "beside-compiled-4"], "--small leaves out beside-compiled-4"),
    ):
        assert gpu.main(["--device", "cpu", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_a_profiler_that_fails_leaves_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "launched", lambda work, device: 1 / 0)
    assert gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path), *SOME]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"] and all(case["passes"]["forward"]["time"] for case in results["cases"])
    assert all("ZeroDivisionError" in reason for reason in results["failed"].values()) and results["failed"]


def test_a_kernel_without_a_prediction_has_none():
    table = {"forward<1>": 0.9}
    assert predicted.of_kernels(["a::forward_kernel<1>"], table) == 0.9
    assert predicted.of_kernels(["a::forward_kernel<1>", "a::backward_kernel<2>"], table) is None
    assert predicted.of_kernels([], table) is None


def test_a_table_may_name_kernels_as_compilers_show_them(tmp_path):
    name = next(name for name in backends.core.variant_names(0, 0) if "Currents::normalized, " in name)
    shown = name.replace("snnfast::portable::Currents::normalized", "(snnfast::portable::Currents)1")
    shown = shown.replace("snnfast::portable::Channels::own", "(snnfast::portable::Channels)1")
    ways = [
        name,
        f"void {shown}(snnfast::ForwardCall)",
        shown.replace("snnfast::portable::", "").replace("_kernel", ""),
    ]
    for way in ways:
        (tmp_path / "table.csv").write_text(f'kernel,fraction\n"{way}",0.8\n')
        assert predicted.of_kernels([name], predicted.read(tmp_path)) == 0.8


@pytest.mark.cuda
def test_on_a_gpu_calls_are_captured_into_graphs_and_their_kernels_known(tmp_path):
    assert gpu.main(["--device", "cuda", "--small", "--out", str(tmp_path), *SOME]) == 0
    for case in json.loads((tmp_path / "results.json").read_text())["cases"]:
        assert case["by"] == ["graph"]
        for name in ("forward", "backward"):
            assert any(f"::{name}_kernel<" in kernel for kernel in case["passes"][name]["kernels"])
