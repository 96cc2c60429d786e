"""What every layer is to torch.fx, torch.jit and copies, and what carries a state from call to call."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeVar

from torch import fx, nn

__all__ = ["Carries", "Layer", "as_leaf", "copied"]


def as_leaf(layer: nn.Module, *arguments: Any, **named: Any) -> fx.Proxy:
    """The call of a layer as one node of a torch.fx graph, as those of torch.nn's layers are."""
    tracer: Any = next(a for a in (*arguments, *named.values()) if isinstance(a, fx.Proxy)).tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), arguments, named)


Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model) -> Model:
    """A deep copy. A process group is a handle: the copy takes its statistics over the same one."""
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    return deepcopy(model, {id(group): group for group in groups})


class Layer(nn.Module):
    """Base of the layers, which torch.jit.script cannot compile and should say so of by name."""

    if TYPE_CHECKING:
        # torch says that attributes are tensors or modules; options are neither.
        def __setattr__(self, name: str, value: Any) -> None: ...

    def __prepare_scriptable__(self) -> nn.Module:
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose forward is Python around an op; "
            "torch.jit.trace(model, sample) and torch.export.export(model, (sample,)) record it, torch.compile runs it"
        )


class Carries(nn.Module):
    """Base of what keeps ``_state`` from call to call and is no neuron: a sum, or spikes that wait."""

    carry_state = True
    _state: Any = None

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...

    def reset_state(self) -> None:
        """Forgets the state: the next call begins a sequence."""
        self._state = None

    def detach_state(self) -> None:
        """Does nothing: a stream, where these are, keeps no graph."""
