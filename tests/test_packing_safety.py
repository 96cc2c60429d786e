"""pack_spikes mistakes nothing, leaks nothing, sees changes in place, and lives with the rest of torch."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import Counter

import pytest
import torch
from packing_cases import WEIGHTS, B, C, Calls, H, Residual, T, compare, currents, network, normal
from packing_cases import nothing_left_behind as nothing_left_behind  # for every test here
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

import snnfast as sf
from snnfast.autograd.integrate import listeners
from snnfast.memory import packing

# ---- changes in place


def test_spikes_changed_in_place_before_they_are_saved_are_kept_whole():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def without_autograd():
        s = sf.IF(0.3)(x)
        with torch.no_grad():
            s.mul_(0.25)
        return s @ weight

    def through_a_view():
        s = sf.IF(0.3)(x)
        with torch.no_grad():
            s[1].detach().add_(0.5)
        return s @ weight

    def with_autograd():
        s = sf.IF(0.3)(x)
        s.mul_(0.25)
        return s @ weight

    for forward in (without_autograd, through_a_view, with_autograd):
        packed = compare(forward, x, weight)
        assert packed.packed_tensors == 0 and packed.saved_changed == 1, forward.__name__


def test_another_tensor_of_the_same_memory_does_not_hide_a_change():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def forward():
        s = sf.IF(0.3)(x)
        alias = s.data  # with a version counter of its own
        with torch.no_grad():
            s.mul_(0.5)
        return alias @ weight

    assert compare(forward, weight).packed_tensors == 0


def test_spikes_changed_between_two_layers_are_packed_for_the_first_alone():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()
    with sf.pack_spikes() as packed:
        s = sf.IF(0.3)(x)
        y = (s @ weight).sum()
        wanted = s.detach().clone()
        with torch.no_grad():
            s.mul_(0.5)
        z = (s @ weight).sum()
    assert packed.packed_tensors == packed.saved_changed == 1
    (first,) = torch.autograd.grad(y, weight)
    (second,) = torch.autograd.grad(z, weight)
    assert torch.equal(first, wanted.sum((0, 1, 2, 3)).unsqueeze(1).expand(-1, 3))
    assert torch.equal(second, first / 2)


@pytest.mark.parametrize(
    "change", [lambda x: x, lambda x: x.detach(), lambda x: x[0]], ids=["itself", "detached", "a part"]
)
def test_a_tensor_kept_whole_and_changed_since_is_an_error_as_always(change):
    x = normal(3, 4).requires_grad_()
    with sf.pack_spikes():
        a = x * 2
        y = a.square()
    with torch.no_grad():
        change(a).add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an in-place.*\[3, 4\].*version 0, is at version"):
        y.sum().backward()


# ---- with everything else that torch offers


def test_backward_runs_twice_and_after_the_context():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    with sf.pack_spikes():
        y = conv2d(sf.IF(0.3)(x).flatten(0, 1), weight).square().sum()
    first = torch.autograd.grad(y, (x, weight), retain_graph=True)
    second = torch.autograd.grad(y, (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivatives_of_the_other_layers_work():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def forward():
        with torch.no_grad():
            s = sf.IF(0.3)(x)
        (grad,) = torch.autograd.grad((s @ weight).square().sum(), weight, create_graph=True)
        return grad.square().sum()

    assert compare(forward, weight).packed_tensors == 1


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("inside", [False, True], ids=["after the context", "inside the context"])
def test_checkpointed_blocks_work_and_keep_their_inputs_as_bits(reentrant, inside):
    x, results = currents(), []
    block = Residual(C)
    for pack in (False, True):
        block.zero_grad()
        packed, y = sf.pack_spikes(), None

        def run(x=x):
            return checkpoint(block, sf.IF(0.3)(x), use_reentrant=reentrant)

        if pack:
            with packed:
                y = run()
                kept = packed.kept_bytes
                if inside:
                    y.square().sum().backward()
        else:
            y = run()
        if not (pack and inside):
            y.square().sum().backward()
        results.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in block.parameters())])
        x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert packed.saved_packed >= 1
    assert kept == x.numel() // 8 + x.nbytes  # the block's input as bits, and the first neurons' current


def test_contexts_nest_and_each_counts_what_is_saved_within_it():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    n = x.numel()
    with sf.pack_spikes() as outer:
        s = sf.IF(0.3)(x)
        with sf.pack_spikes() as inner:
            y = conv2d(s.flatten(0, 1), weight).sum()  # spikes of the outer context
            s2 = sf.IF(0.2)(x)
        y = y + conv2d(s2.flatten(0, 1), weight).sum()  # spikes of the inner one
    assert inner.by_layer == {"(no module)": n // 8, "IF": 4 * n}
    assert outer.by_layer == {"(no module)": 2 * n // 8, "IF": 4 * n}
    assert (inner.saved_packed, outer.saved_packed) == (1, 2)
    y.backward()


def test_hooks_of_the_user_s_own_apply_where_they_are_innermost():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    seen = []

    def keep(t):
        seen.append(tuple(t.shape))
        return t.detach()

    mine = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with sf.pack_spikes() as packed:
        s = sf.IF(0.3)(x)
        with mine:
            y = conv2d(s.flatten(0, 1), weight).sum()
        assert (T * B, C, H, H) in seen and packed.saved_packed == 0
        y = y + conv2d(s.flatten(0, 1), weight).sum()
    assert packed.saved_packed == 1
    y.backward()
    seen.clear()
    with mine, sf.pack_spikes() as packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1), weight).sum().backward()
    assert not seen and packed.saved_packed == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_regions_give_the_same_results_inside(backend):
    torch._dynamo.reset()
    net, x = network(), normal(T, 2, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend=backend)
    for model in (net, compiled):  # compiled inside the context, then called outside and inside again
        for pack in (True, False, True):
            model.zero_grad()
            with sf.pack_spikes(model) if pack else torch.enable_grad():
                y = model(x).square().sum()
            y.backward()
            found = [y.detach(), *(p.grad for p in model.parameters())]
            if model is net and pack:
                wanted = [t.clone() for t in found]
            else:
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    torch._dynamo.reset()


def test_spikes_that_a_compiled_layer_saves_are_packed_where_an_eager_neuron_made_them():
    torch._dynamo.reset()
    x = currents()
    layer = nn.Conv2d(C, C, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    packed = compare(lambda: compiled(sf.IF(0.3)(x).flatten(0, 1)), x, layer.weight)
    assert packed.packed_tensors == 1
    torch._dynamo.reset()


def test_a_context_does_not_make_compiled_neurons_compile_again():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layer, x = torch.compile(sf.IF(), backend=counter, fullgraph=True), currents()
    layer(x)
    before = counter.frame_count
    with sf.pack_spikes():
        layer(x)
    assert counter.frame_count == before
    torch._dynamo.reset()


def test_a_context_belongs_to_its_thread():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    barrier, found, errors = threading.Barrier(3, timeout=60), {}, []

    def work(name: str, pack: bool):
        try:
            leaf = x.detach().requires_grad_()
            barrier.wait()
            for _ in range(10):
                packed = sf.pack_spikes()
                with packed if pack else torch.enable_grad():
                    y = conv2d(sf.IF(0.3)(leaf).flatten(0, 1), weight)
                    if not pack:
                        assert not getattr(packing._here, "contexts", None)
                barrier.wait()
                found[name] = (packed.packed_tensors, torch.autograd.grad(y.square().sum(), leaf)[0])
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(str(i), i > 0)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [found[str(i)][0] for i in range(3)] == [0, 1, 1]
    assert all(torch.equal(found["0"][1], found[str(i)][1]) for i in range(3))


def test_spikes_of_a_frozen_encoder_are_packed_and_inference_is_left_alone():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())

    def frozen():
        with torch.no_grad():
            s = sf.IF(0.3)(x)
        return conv2d(s.flatten(0, 1), weight)

    assert compare(frozen, weight).packed_tensors == 1
    with sf.pack_spikes() as packed:
        with torch.inference_mode():
            conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
        with torch.no_grad():
            conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
        sf.IF()(torch.zeros(3, 0, 4))
    assert packed.kept_bytes == packed.saved_packed == packed.saved_other == 0


def test_outside_of_a_context_neurons_register_nothing(monkeypatch):
    def refuse(spikes):
        raise AssertionError("registered outside of a context")

    with sf.pack_spikes():
        pass
    monkeypatch.setattr(packing, "register", refuse)
    sf.IF()(currents())
    sf.functional.leaky_integrate_and_fire(currents())
    with sf.pack_spikes(), pytest.raises(AssertionError, match="registered"):
        sf.IF()(currents())


# ---- nothing is mistaken, nothing leaks


@pytest.mark.parametrize(
    "part",
    [lambda m: m[:4], lambda m: m[::2], lambda m: m[:1].expand(6), lambda m: m[:0]],
    ids=["first", "every second", "expanded", "empty"],
)
def test_spikes_that_are_not_all_of_a_storage_are_not_registered(part):
    weight = torch.ones(6, requires_grad=True)
    memory = torch.tensor([1.0, 0.0, 1.0, 0.0, 5.0, 7.0])
    with sf.pack_spikes() as packed:
        packing.register(part(memory))
        y = (memory * weight).sum()
    assert packed.saved_packed == 0
    assert torch.equal(torch.autograd.grad(y, weight)[0], memory)


def test_a_storage_at_a_reused_address_is_never_taken_for_spikes():
    weight = normal(64, 2, seed=1).requires_grad_()
    addresses, storages, reused = set(), set(), [0, 0]
    with sf.pack_spikes() as packed:
        for i in range(2000):
            s = sf.IF(0.3)(normal(4, 16, 64, seed=i).requires_grad_())
            addresses.add(s.data_ptr())
            storages.add(s.untyped_storage()._cdata)
            del s
            # Not spikes, and among so many some that lie where spikes were.
            others = [normal(4, 16, 64, seed=seed) for seed in range(8)]
            for other in others:
                reused[0] += other.data_ptr() in addresses
                reused[1] += other.untyped_storage()._cdata in storages
                (grad,) = torch.autograd.grad((other @ weight).sum(), weight)
                assert torch.equal(grad, torch.autograd.grad((other.clone() @ weight).sum(), weight)[0])
            if min(reused) > 20:
                break
    assert packed.packed_tensors == 0
    if not all(reused):
        pytest.skip(f"the allocator reused no address, which shows nothing: {reused}")


def test_a_fact_about_a_storage_is_not_one_about_its_address():
    facts = packing._ByStorage()
    first, second = torch.zeros(4).untyped_storage(), torch.zeros(4).untyped_storage()
    facts.put(first, "first")
    # As if the second had taken the place of the first.
    facts._facts[second._cdata] = facts._facts.pop(first._cdata)
    assert facts.get(second) is None and facts.get(first) is None
    facts.put(second, "second")
    del first
    gc.collect()
    assert facts.get(second) == "second" and len(facts) == 1
    del second
    gc.collect()
    assert len(facts) == 0


def test_the_memory_of_packed_spikes_is_free_once_nobody_else_holds_them():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    for pack in (False, True):
        with sf.pack_spikes() if pack else torch.enable_grad():
            s = sf.IF(0.3)(x)
            y = conv2d(s.flatten(0, 1), weight).sum()
        storage = weakref.ref(s.untyped_storage())
        del s
        assert (storage() is None) is pack
        assert len(packing._spikes) == 0
        y.backward()


def bits_alive() -> list[weakref.ref]:
    return [weakref.ref(found) for found in gc.get_objects() if type(found) is packing._Bits]


def test_nothing_outlives_the_graph():
    x = currents()
    gc.collect()
    gc.disable()  # what only the cycle collector would free is a leak here
    try:
        net = network()
        with sf.pack_spikes(net) as packed:
            a = x * 2
            s = sf.IF(0.3)(a)
            y = (s.sigmoid().square() @ normal(H, 3)).sum() + net(normal(T, 2, 3, 8, 8).requires_grad_()).sum()
        watched = [weakref.ref(a.untyped_storage()), weakref.ref(s.untyped_storage()), weakref.ref(packed)]
        watched += bits_alive()
        y.backward(retain_graph=True)
        y.backward()
        del a, s, y, packed
        assert len(watched) > 3 and [w() for w in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_the_graph_keeps_neither_the_context_nor_its_model():
    net, x, weight = network(), currents(), normal(H, 3, seed=1).requires_grad_()
    gc.collect()
    gc.disable()
    try:
        with sf.pack_spikes(net) as packed:
            y = (sf.IF(0.3)(x) @ weight).sigmoid().sum()
        watched = [weakref.ref(packed), weakref.ref(net)]
        del packed, net
        gc.collect()  # modules are in cycles of their own
        assert [what() for what in watched] == [None, None]
        y.backward()
    finally:
        gc.enable()


def test_a_graph_that_is_dropped_without_backward_frees_everything():
    net = network()
    gc.collect()
    gc.disable()
    try:
        with sf.pack_spikes():
            y = net(normal(T, 2, 3, 8, 8)).sigmoid()  # whose node keeps its own output
        alive = bits_alive()
        assert len(alive) == 6
        alive.append(weakref.ref(y.untyped_storage()))
        y = y.square().sum()
        del y
        assert all(what() is None for what in alive) and len(packing._spikes) == 0
    finally:
        gc.enable()


def test_an_exception_inside_leaves_nothing_open():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    with pytest.raises(RuntimeError, match="channels"), sf.pack_spikes() as packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1)[:, :3], weight)
    assert not listeners and packed._names == {}
    seen = packed.saved_other
    conv2d(x.flatten(0, 1), weight)
    assert packed.saved_other == seen


def test_a_context_may_be_entered_again_but_not_while_it_is_open():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    packed = sf.pack_spikes()
    with packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
        with pytest.raises(RuntimeError, match="open already"):
            packed.__enter__()
    with packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
    assert packed.saved_packed == packed.packed_tensors == 2


def test_a_model_that_is_none_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or None, got Tensor"):
        sf.pack_spikes(torch.zeros(3))


def test_layers_are_named_as_in_the_model_or_by_their_class():
    net, x = network(), normal(T, 2, 3, 8, 8)
    with sf.pack_spikes(net) as named:
        net(x)
    with sf.pack_spikes() as classes:
        net(x)
    modules = dict(net.named_modules())
    assert named.by_layer.keys() <= modules.keys() and "2.second.module.0" in named.by_layer
    by_class: Counter[str] = Counter()
    for name, kept in named.by_layer.items():
        by_class[type(modules[name]).__name__] += kept
    assert by_class == classes.by_layer
    assert sum(named.by_layer.values()) == named.kept_bytes == classes.kept_bytes
    with sf.pack_spikes(layer := sf.IF()) as itself:
        layer(currents())
    assert list(itself.by_layer) == ["IF"]


@pytest.mark.cuda
def test_on_a_gpu_nothing_waits_and_every_stream_has_its_own_bits():
    x, weight = currents().detach().cuda().requires_grad_(), nn.Parameter(WEIGHTS["conv"].cuda())
    packed = compare(lambda: conv2d(sf.IF(0.3)(x).flatten(0, 1), weight), x, weight)
    assert packed.packed_tensors == packed.saved_packed == 1
    other = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Calls() as calls, sf.pack_spikes():
            s = sf.IF(0.3)(x)
            y = conv2d(s.flatten(0, 1), weight) + conv2d(s.flatten(0, 1), weight)
            assert calls.of["pack_bits"] == 1
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                z = conv2d(s.flatten(0, 1), weight)
            assert calls.of["pack_bits"] == 2
            torch.cuda.current_stream().wait_stream(other)
            s.record_stream(other)
        torch.autograd.grad((y + z).sum(), (x, weight))
    finally:
        torch.cuda.set_sync_debug_mode("default")
