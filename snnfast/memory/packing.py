"""One bit per spike in place of a number, wherever a layer keeps spikes for its backward pass.

The hooks of ``torch.autograd.graph.saved_tensors_hooks`` see every tensor that is saved. Spikes are recognised by the
storage that a neuron layer wrote, itself and not its address, and by torch's version counter, which says whether it
was changed since.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from snnfast._text import readable, table
from snnfast.autograd.integrate import listeners
from snnfast.backends import DTYPE_CODES
from snnfast.ops.pack_bits import is_dense, pack_bits, unpack_bits

__all__ = ["pack_spikes"]

_here = threading.local()  # .contexts: those of this thread, innermost last
_lock = threading.RLock()  # reentrant: a storage's death may run code in the middle of what holds it
_open_contexts = 0

Fact = TypeVar("Fact")


class _ByStorage(Generic[Fact]):
    """A fact about each of some storages, dropped when the storage dies.

    The key is an address, but never believed: the storage found there must be the very object of the weak reference.
    (torch keeps a storage's Python object, once it was asked for, as long as the storage itself.)
    """

    def __init__(self) -> None:
        self._facts: dict[int, tuple[weakref.ref[torch.UntypedStorage], Fact]] = {}

    def get(self, storage: torch.UntypedStorage) -> Fact | None:
        found = self._facts.get(storage._cdata)
        return found[1] if found is not None and found[0]() is storage else None

    def put(self, storage: torch.UntypedStorage, fact: Fact) -> None:
        key, facts = storage._cdata, self._facts

        def drop(dead: weakref.ref[torch.UntypedStorage]) -> None:
            found = facts.get(key)
            if found is not None and found[0] is dead:
                del facts[key]

        facts[key] = weakref.ref(storage, drop), fact

    def __len__(self) -> int:
        return len(self._facts)


class _Bits:
    """A packed storage. Alive as long as something that was saved needs it."""

    __slots__ = ("__weakref__", "bits", "count", "dtype", "stream", "unpacked")

    def __init__(self, storage: torch.UntypedStorage, dtype: torch.dtype, stream: int) -> None:
        whole = torch.empty(0, dtype=dtype, device=storage.device).set_(storage)
        self.bits = pack_bits(whole)
        self.count = whole.numel()
        self.dtype = dtype
        self.stream = stream
        self.unpacked: tuple[weakref.ref[torch.UntypedStorage], int] | None = None

    def unpack(self) -> Tensor:
        """The storage's elements in memory order; the same storage again while a layer's backward still has it."""
        stream = _stream(self.bits)
        if self.unpacked is not None:
            storage = self.unpacked[0]()
            # Another stream would have to wait for this one's kernel: it gets its own.
            if storage is not None and self.unpacked[1] == stream:
                return torch.empty(0, dtype=self.dtype, device=storage.device).set_(storage)
        whole = unpack_bits(self.bits, self.count, self.dtype)
        self.unpacked = weakref.ref(whole.untyped_storage()), stream
        return whole


class _Spikes:
    """What is known of a storage full of spikes. It holds neither the storage nor the graph."""

    __slots__ = ("counter", "dtype", "packed", "version")

    def __init__(self, spikes: Tensor) -> None:
        self.dtype = spikes.dtype
        self.version = spikes._version
        # An empty tensor that shares the spikes' version counter: it tells of changes when the spikes are gone, too.
        self.counter = spikes.detach()
        self.counter.data = spikes.new_empty(0)
        self.packed: weakref.ref[_Bits] | None = None

    @property
    def unchanged(self) -> bool:
        return self.counter._version == self.version

    def pack(self, storage: torch.UntypedStorage, stream: int) -> _Bits:
        packed = None if self.packed is None else self.packed()
        if packed is None or packed.stream != stream:
            packed = _Bits(storage, self.dtype, stream)
            self.packed = weakref.ref(packed)
        return packed


class _SavedBits:
    """A saved tensor whose storage is packed: a view of what is unpacked."""

    __slots__ = ("offset", "packed", "shape", "strides")

    def __init__(self, packed: _Bits, tensor: Tensor) -> None:
        self.packed = packed
        self.shape, self.strides, self.offset = tensor.shape, tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        return self.packed.unpack().as_strided(self.shape, self.strides, self.offset)


class _SavedWhole:
    """A tensor saved as it is. With hooks torch leaves it to them to see that it was not changed since."""

    __slots__ = ("kept", "version")

    def __init__(self, tensor: Tensor) -> None:
        # A tensor in the middle of the graph that the graph holds would hold the graph: a leak for good.
        self.kept = tensor if tensor.is_leaf else tensor.detach()
        self.version = tensor._version

    def tensor(self) -> Tensor:
        if self.kept._version != self.version:
            raise RuntimeError(
                "one of the tensors needed for the gradient has been modified by an in-place operation: a "
                f"{self.kept.dtype} tensor of shape {list(self.kept.shape)}, saved inside snnfast.pack_spikes at "
                f"version {self.version}, is at version {self.kept._version}"
            )
        return self.kept


def _unpack(saved: _SavedBits | _SavedWhole) -> Tensor:
    return saved.tensor()


def _pack_hook(context: pack_spikes) -> Callable[[Tensor], _SavedBits | _SavedWhole]:
    # The graph keeps both hooks. Were they methods of the context, it would keep the context and its model as well; and
    # a model that carries a state keeps the graph.
    open_context = weakref.ref(context)

    def pack(tensor: Tensor) -> _SavedBits | _SavedWhole:
        context = open_context()
        return _SavedWhole(tensor) if context is None else context._pack(tensor)

    return pack


_spikes: _ByStorage[_Spikes] = _ByStorage()
_NODE_KEY = "snnfast spikes"

# What only reads its input in another way …
_VIEWS = frozenset(
    name + "Backward0"
    for name in (
        "Alias",
        "Expand",
        "Permute",
        "ReshapeAlias",
        "Select",
        "Slice",
        "Squeeze",
        "T",
        "Transpose",
        "Unsqueeze",
        "UnsafeView",
        "View",
    )
) | {"SqueezeBackward1", "SqueezeBackward2"}
# … and what writes nothing but values of its input: a cast of zeros and ones is exact, the largest of some is one.
_COPIES = frozenset(
    ("CloneBackward0", "ToCopyBackward0", "MaxPool2DWithIndicesBackward0", "MaxPool3DWithIndicesBackward0")
)


def register(spikes: Tensor) -> None:
    """Notes that a neuron layer has filled a tensor with spikes, so that saving it packs it.

    Does nothing where no pack_spikes context is open in this thread, for subclasses of Tensor, in inference mode (such
    tensors are never saved), and for a tensor that is not all of a storage.
    """
    if not getattr(_here, "contexts", None) or type(spikes) is not Tensor or spikes.is_inference():
        return
    if spikes.dtype not in DTYPE_CODES or not spikes.numel() or not is_dense(spikes):
        return
    storage = spikes.untyped_storage()
    if storage.nbytes() != spikes.nbytes:
        return
    known = _Spikes(spikes)
    _spikes.put(storage, known)
    if spikes.grad_fn is not None:
        metadata: Any = spikes.grad_fn.metadata  # a dict, which torch's stubs take for a method
        metadata[_NODE_KEY] = known  # for _copy_of


def _stream(tensor: Tensor) -> int:
    return torch._C._cuda_getCurrentRawStream(tensor.get_device()) if tensor.is_cuda else 0


def _copy_of(tensor: Tensor) -> tuple[_Spikes | None, int]:
    """The spikes that a tensor is a copy of, and after how many copies.

    A copy is a cast (by autocast), a reshape that copies, or the result of max-pooling.
    """
    node, copies = tensor.grad_fn, 0
    while node is not None:
        name = node.name()
        if name in _COPIES:
            copies += 1
        elif name not in _VIEWS:
            break
        node, output = node.next_functions[0]
        if output != 0:
            return None, 0
    metadata: Any = None if node is None else node.metadata
    return (None, 0) if node is None else (metadata.get(_NODE_KEY), copies)


def _recognise(tensor: Tensor, storage: torch.UntypedStorage) -> tuple[_Spikes | None, str]:
    """The spikes that a tensor is a view of, or None and why it is saved whole."""
    if type(tensor) is not Tensor or tensor.dtype not in DTYPE_CODES or tensor.is_neg():
        return None, "other"
    known = _spikes.get(storage)
    if known is None:
        source, copies = _copy_of(tensor)
        if source is None:
            return None, "other"
        if copies != 1:  # a change of one in between would be out of sight
            return None, "copied"
        if not source.unchanged or tensor._version != 0:
            return None, "changed"
        known = _Spikes(tensor)
        _spikes.put(storage, known)
    if known.dtype != tensor.dtype:
        return None, "other"
    # Both: a tensor made with `.data` has a version counter of its own.
    return (known, "") if known.unchanged and tensor._version == known.version else (None, "changed")


_CALL = nn.Module._call_impl.__code__


def _running_modules() -> list[nn.Module]:
    """The modules whose forward is running in this thread, innermost first.

    Read off the stack: hooks on the modules would be traced into torch.compile's graphs, and left behind by exceptions.
    """
    modules: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            modules.append(frame.f_locals["self"])
        frame = frame.f_back
    return modules


def _is_parameter(tensor: Tensor, storage: torch.UntypedStorage, modules: list[nn.Module]) -> bool:
    if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
        return True
    return bool(modules) and any(
        b is not None and b.layout is torch.strided and b.untyped_storage() is storage
        for b in modules[0]._buffers.values()
    )


class pack_spikes:
    """Keeps one bit per spike for the backward pass, in place of a number::

        with snnfast.pack_spikes() as packed:
            loss = criterion(model(images), labels)
        loss.backward()
        print(packed.kept_bytes)

    A layer of any kind (convolution, linear, matmul, pooling, another neuron layer) that is called inside and saves
    the spikes of a snnfast layer for its backward pass, or views of them, saves bits instead; they are packed once,
    however many layers save them. Gradients are the same to the last bit. The spikes' own memory is free once nobody
    else holds them. Backward may run inside or after the context, more than once with ``retain_graph=True``.

    Recognised are spikes of float32, float64, float16 and bfloat16 in any dense memory format, and what is one step
    from them: the copy that a cast (autocast's) or a reshape makes, and the result of max-pooling. Everything else is
    saved whole, as without the context: spikes changed in place since (the version counter tells; a change that the
    counter does not see, through ``.data``, NumPy or a kernel of your own, must not happen), copies of copies, spikes
    after dropout or average pooling, tensors that a ``torch.compile``'d region makes (open the context outside of
    it), and what is not spikes. A tensor saved whole and changed in place since is a RuntimeError in backward, as
    without the context.

    As with all hooks for saved tensors, the innermost ones apply: the layers inside another ``saved_tensors_hooks``
    are that one's, and so are those inside a ``torch.utils.checkpoint`` without reentry; what a checkpoint of either
    kind keeps as its input is packed. Contexts nest, and each counts what is saved within it. A context belongs to
    the thread that entered it.

    Args:
        model: names the layers in ``by_layer`` as its ``named_modules()`` does, itself by its class. Without it, or
            outside of it, layers go by their classes.

    Its figures are over everything saved since the context was made; inputs of the network and other activations
    count, also where they outlive the graph anyway.

    Attributes:
        kept_bytes (int): bytes kept for backward, each distinct storage counted once (as a whole), and the bits of
            a packed one once in its place. Without what parameter_bytes counts.
        parameter_bytes (int): bytes of the parameters, views of them, and buffers of the layer that saves them, which
            live anyway.
        by_layer (dict[str, int]): kept_bytes by the innermost module running when a storage was first saved;
            "(no module)" where there was none.
        packed_tensors (int): distinct spike tensors packed.
        unpacked_bytes (int): their size before.
        packed_bytes (int): their size after.
        saved_packed (int): how often a tensor was saved packed.
        saved_changed (int): how often one was saved whole because it was changed in place since it held spikes.
        saved_copied (int): how often whole because it is a copy of a copy of spikes.
        saved_other (int): how often whole because it is not spikes (a parameter, say).

    Raises:
        TypeError: model is not an nn.Module.
        RuntimeError: the context is entered while it is open.
    """

    _packs = True

    def __init__(self, model: nn.Module | None = None) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
        self.kept_bytes = self.parameter_bytes = 0
        self.by_layer: dict[str, int] = {}
        self.packed_tensors = self.unpacked_bytes = self.packed_bytes = 0
        self.saved_packed = self.saved_changed = self.saved_copied = self.saved_other = 0
        self._model = model
        self._names: dict[nn.Module, str] = {}
        self._counted: _ByStorage[bool] = _ByStorage()
        self._hooks: Any = None
        self._around: tuple[pack_spikes, ...] = ()

    def __enter__(self) -> pack_spikes:
        global _open_contexts
        if self._hooks is not None:
            raise RuntimeError("this pack_spikes context is open already; make another one to nest them")
        hooks = torch.autograd.graph.saved_tensors_hooks(_pack_hook(self), _unpack)
        hooks.__enter__()
        self._hooks = hooks
        if self._model is not None:
            self._names = {module: name or type(module).__name__ for name, module in self._model.named_modules()}
        if not hasattr(_here, "contexts"):
            _here.contexts = []
        self._around = tuple(_here.contexts)
        _here.contexts.append(self)
        with _lock:
            _open_contexts += 1
            if _open_contexts == 1:
                listeners.append(register)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _open_contexts
        if self not in getattr(_here, "contexts", ()):
            raise RuntimeError("pack_spikes must be left in the thread that entered it, once")
        _here.contexts.remove(self)
        with _lock:
            _open_contexts -= 1
            if _open_contexts == 0:
                listeners.remove(register)
        hooks, self._hooks = self._hooks, None
        self._names, self._around = {}, ()
        hooks.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        saved = readable(self.unpacked_bytes - self.packed_bytes)
        return f"<{type(self).__name__}: {readable(self.kept_bytes)} kept for backward, {saved} less than unpacked>"

    def __str__(self) -> str:
        """What is kept, what packing saved, and each layer's share."""
        apart = f"{readable(self.parameter_bytes)} of parameters and buffers, which live anyway"
        saved = readable(self.unpacked_bytes - self.packed_bytes)
        tensors = f"{self.packed_tensors} spike tensor{'' if self.packed_tensors == 1 else 's'}"
        packed = f"{readable(self.unpacked_bytes)} to {readable(self.packed_bytes)}"
        layers = table([(name, readable(size)) for name, size in self.by_layer.items()], left=1)
        return "\n".join(
            [
                f"kept for backward: {readable(self.kept_bytes)}, and {apart}",
                f"saved: {saved}, by packing {tensors} from {packed}",
                *(f"  {line}" for line in layers),
            ]
        )

    def _pack(self, tensor: Tensor) -> _SavedBits | _SavedWhole:
        if tensor.layout is not torch.strided or (type(tensor) is not Tensor and not isinstance(tensor, nn.Parameter)):
            # Sparse, or a wrapper of other tensors: it has no storage to tell it by.
            saved = _SavedWhole(tensor)
            self._note("other", saved.kept, None, tensor.numel() * tensor.element_size())
            return saved
        storage = tensor.untyped_storage()
        known, why = _recognise(tensor, storage) if self._packs else (None, "other")
        if known is None:
            self._note(why, tensor, storage, storage.nbytes())
            return _SavedWhole(tensor)
        packed = known.pack(storage, _stream(tensor))
        self._note("packed", packed.bits, packed.bits.untyped_storage(), packed.bits.nbytes, storage.nbytes())
        return _SavedBits(packed, tensor)

    def _note(
        self, how: str, tensor: Tensor, storage: torch.UntypedStorage | None, size: int, unpacked: int = 0
    ) -> None:
        with _lock:
            modules: list[nn.Module] | None = None
            for context in (*self._around, self):
                name = f"saved_{how}"
                setattr(context, name, getattr(context, name) + 1)
                if not size or (storage is not None and context._counted.get(storage)):
                    continue
                if modules is None:
                    modules = _running_modules()
                if storage is not None:
                    context._counted.put(storage, True)
                    if not unpacked and _is_parameter(tensor, storage, modules):
                        context.parameter_bytes += size
                        continue
                if unpacked:
                    context.packed_tensors += 1
                    context.unpacked_bytes += unpacked
                    context.packed_bytes += size
                context.kept_bytes += size
                layer = context._name_of(modules)
                context.by_layer[layer] = context.by_layer.get(layer, 0) + size

    def _name_of(self, modules: list[nn.Module]) -> str:
        for module in modules:
            if module in self._names:
                return self._names[module]
        return type(modules[0]).__name__ if modules else "(no module)"
