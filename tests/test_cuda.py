"""What only a GPU can show: streams, graphs, devices, and the same bits as the CPU. The kernels' arithmetic itself is
tested everywhere, on the host (test_kernels_match_reference.py)."""

from __future__ import annotations

import pytest
import torch

import snnfast as sf

pytestmark = pytest.mark.cuda


def train_once(layer, current, gradient, **call):
    current = current.detach().requires_grad_()
    spikes = layer(current, **call)
    spikes.backward(gradient)
    return spikes, current.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("shape", [(4, 2, 8, 16, 16), (10, 3, 5, 7), (33, 4, 1025), (128, 1, 64)], ids=str)
def test_spikes_are_those_of_the_cpu(dtype, reset, shape):
    current, gradient = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    layer = sf.IF(reset=reset)
    spikes, grad = train_once(layer, current, gradient)
    on_gpu, grad_on_gpu = train_once(layer, current.cuda(), gradient.cuda())
    assert torch.equal(on_gpu.cpu(), spikes)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    assert (grad_on_gpu.cpu() - grad).abs().max() <= bound * grad.abs().max()


def test_work_is_queued_on_the_current_stream():
    current = torch.zeros(8, 64, 1024, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the kernel must wait for this stream's work: the currents come after it
        current.fill_(2.0)
        spikes = sf.IF()(current)
    stream.synchronize()
    assert bool(spikes.all())


def test_forward_and_backward_are_captured_into_a_cuda_graph():
    layer = sf.IF()
    current = torch.randn(20, 4, 256, device="cuda", requires_grad=True)
    gradient = torch.randn(20, 4, 256, device="cuda")
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        torch.autograd.grad(layer(current), current, gradient)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes = layer(current)
        (grad,) = torch.autograd.grad(spikes, current, gradient)
    with torch.no_grad():
        current.copy_(torch.randn_like(current))
    graph.replay()
    expected = layer(current)
    (expected_grad,) = torch.autograd.grad(expected, current, gradient)
    assert torch.equal(spikes, expected)
    assert torch.equal(grad, expected_grad)


def test_a_call_does_not_wait_for_the_device():
    layer = sf.LIF(learn_tau=True, learn_threshold=True).cuda()
    current = torch.randn(40, 4, 256, device="cuda", requires_grad=True)
    layer(current).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(current).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradients_of_threshold_and_tau_are_the_same_on_every_run():
    layer = sf.LIF(learn_tau=True, learn_threshold=True).cuda()
    current = torch.randn(12, 16, 64, 32, 32, device="cuda")
    gradient = torch.randn_like(current)
    found = []
    for _ in range(3):
        layer.zero_grad()
        layer(current).backward(gradient)
        found.append((layer.threshold.grad.clone(), layer.tau_logit.grad.clone()))
    for first, *others in zip(*found, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="one GPU only")
def test_tensors_on_another_device_than_the_current_one():
    current = torch.randn(6, 4, 128)
    with torch.cuda.device(0):
        assert torch.equal(sf.IF()(current.to("cuda:1")).cpu(), sf.IF()(current))


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="v0 is on cpu, current on cuda"):
        sf.functional.integrate_and_fire(torch.randn(3, 2, 4, device="cuda"), torch.zeros(2, 4))
