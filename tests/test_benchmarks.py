"""The benchmark suite measures what it says, compares before it boasts, and refuses what it cannot do."""

from __future__ import annotations

import json

import pytest
import torch

import snnfast
from snnfast import benchmarks, surrogate
from snnfast.benchmarks import baselines, block_memory, cases, measure, peers, report, run
from snnfast.benchmarks.baselines import Baseline, Neuron
from snnfast.benchmarks.kept import kept_for_backward
from snnfast.cli import main
from snnfast.comparing import timing
from snnfast.comparing.naive import NaiveIF, NaiveLIF

CPU = torch.device("cpu")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# T = 20 passes a checkpoint; 21 neurons are no multiple of any vector
SMALL = (20, 3, 7)
DYNAMICS = {
    "hard": {},
    "hard to a value": {"reset_value": -0.3},
    "hard attached": {"detach_reset": False},
    "soft": {"reset": "soft"},
    "soft detached": {"reset": "soft", "detach_reset": True, "threshold": 0.7},
    "equality fires": {"fire_on_equal": True},
}
SURROGATES = tuple(surrogate.SHAPES)


def case(**changes) -> cases.Case:
    return cases.Case(**{"name": "a case", "group": "over T", "shape": SMALL, "seconds": 0.01} | changes)


def currents(dtype=torch.float32, shape=SMALL) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2).to(dtype)


def compared(neuron: Neuron, device: torch.device, dtype: torch.dtype, shape=SMALL, steps=None) -> dict:
    """The naive loop's record when measured beside snnfast."""
    workload = case(shape=shape, steps=steps, neuron=neuron, dtype=dtype, sides=("snnfast", "naive"))
    return measure.measure(workload, device, seconds=0.0)["sides"]["naive"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", DYNAMICS.values(), ids=DYNAMICS)
def test_naive_loop_gives_the_fused_layers_spikes_and_gradients(options, dtype):
    record = compared(Neuron("IF", options), CPU, dtype)
    assert record["agrees"], record["remark"]
    assert record["differing_neurons"] == 0.0
    leaky = compared(Neuron("LIF", {"tau": 1.7, **options}), CPU, dtype)
    assert leaky["agrees"] and leaky["differing_neurons"] == 0.0, leaky["remark"]


@pytest.mark.parametrize("name", SURROGATES)
def test_naive_loop_takes_every_surrogate(name):
    record = compared(Neuron("IF", {"surrogate": getattr(surrogate, name)(gamma=3.0, beta=0.8)}), CPU, torch.float64)
    assert record["agrees"], record["remark"]
    assert record["gradient_error"] <= 1e-12


def test_naive_loop_equals_the_reference():
    x = currents()
    spikes = snnfast.reference.integrate_and_fire(x)[0]
    assert 0 < spikes.sum() < spikes.numel()
    assert torch.equal(NaiveIF()(x), spikes)
    assert torch.equal(NaiveLIF(3.0)(x), snnfast.reference.leaky_integrate_and_fire(x, tau=3.0)[0])
    assert torch.equal(NaiveIF(time_dim=1)(x.transpose(0, 1)), spikes.transpose(0, 1))


def test_naive_loop_holds_a_current():
    x = currents(shape=(3, 7))
    assert torch.equal(NaiveIF()(x, steps=9), NaiveIF()(x.expand(9, 3, 7)))
    record = compared(Neuron(), CPU, torch.float32, shape=(3, 7), steps=9)
    assert record["agrees"], record["remark"]


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.parametrize("options", DYNAMICS.values(), ids=DYNAMICS)
def test_dynamics_variants_on_cuda(options):
    for dtype in (torch.float32, torch.bfloat16):
        record = compared(Neuron("IF", options), torch.device("cuda"), dtype)
        assert record["agrees"], record["remark"]


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_variants_on_cuda(name):
    neuron = Neuron("LIF", {"surrogate": getattr(surrogate, name)(gamma=3.0)})
    for dtype in (torch.float32, torch.float64):
        record = compared(neuron, torch.device("cuda"), dtype)
        assert record["agrees"], record["remark"]


def measured_beside_a_neuron_with_another_threshold() -> dict:
    def make(neuron, device):
        return NaiveIF(1.5)

    wrong = Baseline("naive", "naive loop", make)
    return measure.measure(case(), CPU, baselines=(baselines.find("snnfast"), baselines.find("relu"), wrong))


def test_a_wrong_implementation_gets_no_speed_up():
    measured = measured_beside_a_neuron_with_another_threshold()
    side = measured["sides"]["naive"]
    assert side["agrees"] is False and side["remark"].startswith("differs: the spikes of")
    assert side["time"]["median"] > 0
    assert measure.ratio(measured, "naive") is None
    assert report.against(measured, "naive") == "differs"
    assert measure.ratio(measured, "snnfast", "relu") > 0


def test_a_wrong_gradient_is_seen():
    class Doubled(NaiveIF):
        def forward(self, current, steps=None):
            return super().forward(2 * current - current.detach(), steps)

    measured = measure.measure(
        case(dtype=torch.float64),
        CPU,
        baselines=(baselines.find("snnfast"), Baseline("naive", "naive loop", lambda neuron, device: Doubled())),
    )
    side = measured["sides"]["naive"]
    assert side["differing_neurons"] == 0.0
    assert side["agrees"] is False and "gradients" in side["remark"]


def test_a_nan_in_a_gradient_is_a_difference():
    spikes, gradient = torch.zeros(2, 3), torch.ones(2, 3)
    poisoned = gradient.clone()
    poisoned[0, 0] = float("nan")
    record = measure.compare(
        measure.Result(spikes, (gradient,)), measure.Result(spikes, (poisoned,)), dtype=torch.float32
    )
    assert record["agrees"] is False


def test_a_peer_that_fails_is_recorded_and_the_rest_measured():
    def make(neuron, device):
        raise OSError("no such library")

    measured = measure.measure(case(), CPU, baselines=(baselines.find("snnfast"), Baseline("peer", "Peer", make)))
    assert measured["sides"]["peer"]["skipped"] == "failed: OSError: no such library"
    assert measured["sides"]["snnfast"]["time"]["samples"] >= 7


def test_kept_bytes_are_those_of_the_distinct_storages_saved():
    x, w = torch.randn(100, requires_grad=True), torch.randn(100, requires_grad=True)
    product = kept_for_backward(lambda: x * w, [x], [w])
    assert (product.total, product.input, product.parameters, product.rest) == (800, 400, 400, 0)
    # exp keeps its own result, which is the output here and nobody's there
    assert kept_for_backward(lambda: x.exp(), [x]).output == 400
    inner = kept_for_backward(lambda: x.exp() + 1, [x])
    assert (inner.rest, inner.total) == (400, 400)
    # a view counts as its whole storage, and two views of one storage as one
    half = kept_for_backward(lambda: x[:50] * x[50:], [x])
    assert (half.total, half.input) == (400, 400)
    assert kept_for_backward(lambda: x + 1, [x]).total == 0


@pytest.mark.parametrize("kind", ["IF", "LIF"])
def test_the_fused_layer_keeps_its_input_and_nothing_else(kind):
    measured = measure.measure(case(shape=(16, 3, 7), neuron=Neuron(kind), sides=("snnfast",)), CPU, seconds=0.0)
    kept = measured["sides"]["snnfast"]["kept"]
    assert kept["total"] == kept["input"] == 16 * 3 * 7 * 4


def test_bytes_moved_are_those_of_the_design():
    n = 10 * 3 * 7
    assert case(shape=(10, 3, 7)).bytes_moved() == 20 * n
    assert case(shape=(10, 3, 7), dtype=torch.bfloat16).bytes_moved() == 10 * n
    assert case(shape=(10, 3, 7), training=False).bytes_moved() == 8 * n
    assert case(shape=(3, 7), steps=10).bytes_moved() == pytest.approx((8 + 12 / 10) * n)
    assert case(shape=(32, 3, 7)).bytes_moved() == pytest.approx((20 + 8 / 16) * 32 * 3 * 7)


def test_sides_take_turns():
    class Steady(timing.CpuClock):
        shortest = 1.0

        def sample(self, step, times):
            step()
            return 1.0

    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = timing.interleaved(steps, Steady(), seconds=0.0, fewest=6, most=6)
    assert "".join(order[-18:]) == "abcbcacab" * 2
    assert timings["b"] == timing.Timing(median=1.0, lower=1.0, upper=1.0, least=1.0, samples=6)


def test_the_best_of_several_processes_counts():
    runs = []
    for median in (3.0, 2.0, 4.0):
        sides = {"snnfast": {"time": {"median": median}}, "naive": {"time": {"median": 8 * median}, "agrees": True}}
        runs.append({"environment": {}, "failed": {}, "cases": [{"name": "a case", "sides": sides}]})
    wrong = {"agrees": False, "remark": "differs", "differing_neurons": 1.0, "gradient_error": None}
    merged = run.merge(runs)
    assert merged["cases"][0]["sides"]["snnfast"]["time"] == {"median": 2.0, "medians": [3.0, 2.0, 4.0]}
    assert measure.ratio(merged["cases"][0], "naive") == 8.0
    runs[2]["cases"][0]["sides"]["naive"].update(wrong)
    assert measure.ratio(run.merge(runs)["cases"][0], "naive") is None


def test_the_quick_suite_writes_its_results_and_says_where(tmp_path, capsys):
    folder = tmp_path / "results"
    assert benchmarks.main(["--quick", "--device", "cpu", "--out", str(folder), "--no-preload"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"files: {folder}")
    for name in ("time-over-T.png", "time-over-size.png", "memory-over-T.png"):
        assert name in last
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((folder / "results.json").read_text())
    assert {"device_name", "versions", "allocator", "threads", "load_average", "commit"} <= set(results["environment"])
    for measured in results["cases"]:
        assert measured["sides"]["naive"]["agrees"]
        assert measured["sides"]["snnfast"]["time"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--case", "no-such-case"], ["unknown case 'no-such-case'", "if-10x16x64x16x16", "over T"]),
        (["--processes", "0"], ["--processes: must be at least 1, got 0"]),
        (["--out", "{file}/folder"], ["--out: cannot write to", "allowed: a folder"]),
    ],
)
def test_bad_usage_is_refused_before_any_measuring(arguments, told, tmp_path, capsys, monkeypatch):
    file = tmp_path / "a file"
    file.write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "measure", lambda *_, **__: pytest.fail("measured"))
    given = [argument.format(file=file) for argument in arguments]
    assert main(["bench", *given, "--quick", "--device", "cpu", "--no-preload"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in told), error
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(tmp_path, capsys):
    assert benchmarks.main(["--quick", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "torch sees no CUDA device here; allowed: cpu" in capsys.readouterr().err


def test_the_suites_name_only_baselines_and_blocks_that_exist():
    for one in cases.CASES:
        assert one.sides[0] == "snnfast"
        assert {baselines.find(name).name for name in one.sides} == set(one.sides)
        assert one.block in cases.BLOCKS


@pytest.mark.parametrize("name", peers.LIBRARIES)
@pytest.mark.parametrize(
    "neuron",
    [Neuron("IF"), Neuron("IF", {"reset": "soft"}), Neuron("LIF"), Neuron("LIF", {"decay_input": False})],
    ids=lambda n: f"{n.kind}{n.options or ''}",
)
def test_installed_peers_compute_the_same(name, neuron):
    peer = baselines.find(name)
    if why := peer.why_not(CPU, torch.float32):
        pytest.skip(why)
    measured = measure.measure(case(shape=(8, 4, 1000), neuron=neuron, sides=("snnfast", name)), CPU, seconds=0.0)
    side = measured["sides"][name]
    if "skipped" in side:
        assert not side["skipped"].startswith("failed"), side["skipped"]
        pytest.skip(side["skipped"])
    assert side["agrees"], side["remark"]


def test_a_convolution_batch_norm_if_block_keeps_its_current_and_one_bit_per_spike():
    sides = block_memory.measure(steps=(4, 16))["sides"]
    assert all(value <= 4.2 for value in sides["snnfast-packed"]["per_neuron_and_step"])
    assert all(value <= 8.1 for value in sides["snnfast"]["per_neuron_and_step"])
    for less, more in (("snnfast", "unfused"), ("unfused", "naive")):
        assert sides[more]["per_neuron_and_step"] > sides[less]["per_neuron_and_step"]


@pytest.mark.parametrize("block", ["neuron", "residual", "convolution"])
def test_a_batch_norm_block_agrees_with_torchs_batch_norm_and_the_loop(block):
    workload = case(
        shape=(4, 2, 6, 5, 5),
        neuron=Neuron("BatchNormIF", {"num_features": 6}),
        block=block,
        sides=("snnfast", "naive", "unfused", "relu"),
    )
    sides = measure.measure(workload, CPU, seconds=0.0)["sides"]
    assert sides["naive"]["agrees"] and sides["unfused"]["agrees"], (sides["naive"], sides["unfused"])
    assert sides["naive"]["gradient_error"] is not None and "time" in sides["relu"]


def test_a_training_step_is_timed_for_networks_of_equal_losses() -> None:
    from snnfast.benchmarks import training

    sides = ["snnfast", "naive", "spikingjelly-native", "ann-twin"]
    results = training.measure(
        "resnet11", torch.device("cpu"), width=2, image_size=4, batch_size=2, steps=3, seconds=0.1, sides=sides
    )
    found = results["sides"]
    assert found["naive"]["check"].startswith("same loss in float64 within ")
    assert "runs on cuda only" in found["spikingjelly-native"]["skipped"] or "not installed" in str(found)
    assert found["snnfast"]["ratio"] == 1.0
    assert found["naive"]["ratio"] == pytest.approx(found["naive"]["seconds"] / found["snnfast"]["seconds"])
    shown = training.table(results)
    assert all(side in shown for side in sides)


def test_a_step_of_a_stream_is_timed_beside_steps_of_equal_results() -> None:
    from snnfast.benchmarks import streaming

    results = streaming.measure(torch.device("cpu"), width=2, size=4, seconds=0.1)
    found = results["sides"]
    assert min(results["setting"]["firing"]) > 0.01
    assert found["snnfast"]["ratio"] == 1.0 and found["carried"]["ratio"] > 0
    assert "not installed" in str(found["spikingjelly"]) or "in float64 within" in found["spikingjelly"]["check"]
    assert all(side in streaming.table(results) for side in streaming.SIDES)


def test_steps_of_other_results_are_not_timed() -> None:
    from snnfast.benchmarks import streaming

    parts = [part.double() for part in streaming.build(2, 4)]
    events = (torch.rand(3, 1, 2, 4, 4) < 0.5).double()
    with torch.no_grad(), pytest.raises(RuntimeError, match="apart from the whole sequence's"):
        streaming.check("carried", parts, events, streaming.ours(parts)(events.flip(0)) + 1.0)


def test_networks_of_other_weights_or_dynamics_are_not_timed() -> None:
    from snnfast.benchmarks import training

    ours = training.build("plain_net", 8, 4, layers=3, width=4)
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 2])
    other = training.build("plain_net", 8, 3, layers=3, width=4)
    with pytest.raises(RuntimeError, match="not the same network"):
        training.check(other, ours, images, labels)


def test_the_twin_of_a_training_step_has_the_same_weights_and_no_time() -> None:
    from snnfast.benchmarks import training

    ours = training.build("plain_net", 8, 5, layers=3, width=4)
    twin = training.side_of("ann-twin", ours, torch.device("cpu"))
    assert not twin.activation.spiking
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), twin.parameters(), strict=True))


def disturbed_case(cores: float, seconds: float = 1.0) -> dict:
    """A measured case: ours takes 1 to 2 times ``seconds``, the loop 6 to 9 times."""

    def side(title: str, lower: float, median: float, upper: float) -> dict:
        time = dict(zip(("lower", "median", "upper"), (lower, median, upper), strict=True))
        return {"title": title, "note": "", "time": {name: seconds * value for name, value in time.items()}}

    sides = {
        "snnfast": side("snnfast", 1.0, 1.5, 2.0),
        "naive": side("loop", 6.0, 7.5, 9.0) | {"agrees": True},
        "relu": side("relu", 1.0, 1.5, 2.0),
    }
    return case().describe() | {"sides": sides, "cores_used_by_others": cores}


def test_a_ratio_taken_beside_a_neighbour_is_told_with_its_doubt():
    busy, calm = disturbed_case(1.5), disturbed_case(0.0)
    assert report.against(disturbed_case(1.5, 30.0), "naive") == "3-9x?"
    wide = disturbed_case(1.5)
    wide["sides"]["naive"]["time"] |= {"lower": 0.05, "upper": 130.0}
    assert report.against(wide, "naive") == "0.025-130x?"
    assert report.against(busy, "naive") == "3-9x?" and report.against(calm, "naive") == "5.00x"
    assert "3-9x? by the naive loop" in report.progress(busy) and "others used 1.5 cores" in report.progress(busy)
    assert "others used" not in report.progress(calm)
    wrong = disturbed_case(1.5)
    wrong["sides"]["naive"]["agrees"] = False
    assert report.against(wrong, "naive") == "differs"


@pytest.mark.parametrize(
    ("cores", "again", "measured", "kept"),
    [
        ([0.0, 9.0], 60.0, 1, 0.0),  # calm: once
        ([1.5, 0.0, 9.0], 60.0, 2, 0.0),  # until it is calm
        ([1.5, 0.7, 1.9, 1.1, 0.0], 60.0, 4, 0.7),  # or often enough, and the calmest counts
        ([1.5, 0.0], 0.0, 1, 1.5),  # as long as there is time
    ],
)
def test_a_disturbed_case_is_measured_again_within_a_bound(monkeypatch, cores, again, measured, kept):
    left = iter(cores)
    calls = []

    def fake(workload, device, *, seconds):
        calls.append(seconds)
        return disturbed_case(next(left))

    monkeypatch.setattr(run, "measure", fake)
    found, used = run._measure_calmly(case(), CPU, 0.25, again)
    assert calls == [0.25] * measured and found["cores_used_by_others"] == kept
    assert 0.0 <= used < 1.0


def test_measuring_again_takes_no_more_than_the_suite_has_left(monkeypatch):
    monkeypatch.setattr(run, "measure", lambda workload, device, *, seconds: disturbed_case(2.0))
    monkeypatch.setitem(run.AGAIN_SECONDS, "quick", 5.0)
    given = []

    def calmly(workload, device, seconds, again):
        given.append(again)
        return disturbed_case(2.0), 2.0

    monkeypatch.setattr(run, "_measure_calmly", calmly)
    found = run._measure_here([case(name=name) for name in "abc"], CPU.type, "quick", with_memory=False)
    assert given == [5.0, 3.0, 1.0] and len(found["cases"]) == 3
