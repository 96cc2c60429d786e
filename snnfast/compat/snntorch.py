"""snnTorch's neurons over all time steps in one call: the names, arguments and state dicts of ``snntorch.Leaky`` and
``snntorch.Synaptic`` (version 1.0), with the spikes, potentials and gradients of the loop that calls them step by step.

snntorch itself is not needed, and not imported. Potentials are the library's to the last bit in float32 and float64:
every operation is the library's, rounded in its order. What differs:

* A call is a whole sequence. It starts at rest, or from ``mem``, and carries nothing over, even with ``init_hidden``.
* Spikes have the input's dtype, potentials float32, or float64 for float64 inputs. (The library's spikes are float32,
  and in float64 it rounds what a reset subtracts, and the gradients through spikes, to float32.)
* Where the library computes infinity times 0, NaN, there is a 0; so where ``surrogate.sigmoid`` overflows.

Not covered, and refused by name: ``reset_mechanism="subtract"`` with ``reset_delay=False``; of ``Synaptic``, "zero"
with ``reset_delay=True``; ``inhibition``, ``state_quant`` and graded spikes; surrogates without a shape in
:mod:`snnfast.surrogate`; :class:`RLeaky`, whose neurons wait for each other at every step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor, fx, nn

from snnfast._arguments import hints
from snnfast._arguments.checks import dense, flag, number_within, word
from snnfast.autograd.integrate import run
from snnfast.compat.tables import aligned, sizes_of_a_step
from snnfast.dynamics import Dynamics, check_dtype, is_shape, make_dynamics, not_a_tensor
from snnfast.layers.base import Layer, as_leaf
from snnfast.ops.options import POTENTIAL, states_of
from snnfast.surrogate import Arctangent, FastSigmoid, Rectangle, Sigmoid, Surrogate

__all__ = ["Leaky", "RLeaky", "Synaptic", "equal_surrogate"]

RESETS = ("subtract", "zero", "none")
"""The reset mechanisms, in the order of the numbers that a state dict has for them."""

NO_SLOPE = FastSigmoid(beta=0.0)
"""Of spikes without a gradient."""

# The surrogates of snntorch.surrogate by the names of their functions, of their one number where they have one.
_SHAPES: dict[str, Callable[..., Surrogate]] = {
    "atan": lambda alpha: Arctangent(gamma=math.pi * alpha / 2, beta=alpha / 2),
    "fast_sigmoid": lambda slope: FastSigmoid(gamma=slope, beta=1.0),
    "sigmoid": lambda slope: Sigmoid(gamma=slope, beta=slope),
    "straight_through_estimator": lambda: Rectangle(gamma=0.0, beta=1.0),
}


def equal_surrogate(spike_grad: Any) -> Surrogate:
    """The shape of :mod:`snnfast.surrogate` with the derivative of a surrogate of snnTorch.

    Args:
        spike_grad: what ``snntorch.surrogate.atan(…)``, ``fast_sigmoid``, ``sigmoid`` or
            ``straight_through_estimator`` returned; None, the library's default, ``atan(2.0)``; or a shape of ours.

    Raises:
        TypeError: anything else, whose derivative the kernels do not have.
    """
    if spike_grad is None:
        return Arctangent()
    if is_shape(spike_grad):
        return spike_grad
    family = getattr(spike_grad, "__qualname__", "").partition(".")[0]
    ours = getattr(spike_grad, "__module__", "") == "snntorch.surrogate"
    if ours and family in _SHAPES:
        return _SHAPES[family](**inspect.getclosurevars(spike_grad).nonlocals)
    what = family if ours and family else repr(spike_grad)
    raise TypeError(
        f"spike_grad {what} has no equal among the kernels' surrogates: of snntorch.surrogate {', '.join(_SHAPES)} do, "
        "and the shapes of snnfast.surrogate are taken"
    )


def _table(name: str, value: Any) -> Tensor:
    """A decay or threshold as the library keeps it: a tensor, of the default dtype for a number."""
    if isinstance(value, Tensor):
        check_dtype(name, value)
        return dense(name, value)
    return torch.tensor(number_within(name, value, allowed="a number or a tensor"), dtype=torch.get_default_dtype())


def _refuse(layer: str, what: str, instead: str) -> NotImplementedError:
    return NotImplementedError(f"snnfast.compat.snntorch.{layer}: {what} is not covered: {instead}")


class _Neuron(Layer):
    """What Leaky and Synaptic share: the options, tensors and state dict of the library's LIF."""

    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism_val: Tensor
    beta: Tensor

    def __init__(
        self,
        decays: dict[str, Any],
        threshold: Any,
        learned: dict[str, Any],
        spike_grad: Any,
        surrogate_disable: bool,
        init_hidden: bool,
        inhibition: bool,
        reset_mechanism: str,
        state_quant: Any,
        output: bool,
        graded_spikes_factor: Any,
        learn_graded_spikes_factor: bool,
        reset_delay: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self._reset_mechanism = word("reset_mechanism", reset_mechanism, RESETS)
        self._reset_delay = flag("reset_delay", reset_delay)
        self.init_hidden, self.output = flag("init_hidden", init_hidden), flag("output", output)
        self.surrogate_disable = flag("surrogate_disable", surrogate_disable)
        surrogate = equal_surrogate(spike_grad)
        self._surrogate = NO_SLOPE if surrogate_disable else surrogate
        if flag("inhibition", inhibition):
            raise _refuse(name, "inhibition=True", "every neuron whose threshold is crossed fires")
        if state_quant is not None and state_quant is not False:
            raise _refuse(name, "state_quant", "potentials are not rounded between steps")
        factor = _table("graded_spikes_factor", graded_spikes_factor)
        if flag("learn_graded_spikes_factor", learn_graded_spikes_factor) or bool((factor != 1).any()):
            option = "learn_graded_spikes_factor=True" if learn_graded_spikes_factor else "graded_spikes_factor not 1"
            raise _refuse(name, option, "multiply the spikes by it behind the layer")
        if self._reset_mechanism == "subtract" and not self._reset_delay:
            raise _refuse(
                name,
                "reset_mechanism='subtract' with reset_delay=False",
                "where no potential exceeds twice the threshold, it is snnfast.LIF(tau=1 / (1 - beta), "
                "decay_input=False, reset='soft', detach_reset=False, surrogate=snnfast.surrogate.Arctangent())",
            )
        self._register("threshold", threshold, learned["threshold"])
        self.register_buffer("graded_spikes_factor", torch.tensor(1.0))
        self.register_buffer("reset_mechanism_val", torch.tensor(RESETS.index(reset_mechanism)))
        for decay, value in decays.items():
            self._register(decay, value, learned[decay])
        self._dynamics = self._dynamics_of(threshold=self.threshold, tau=self.beta)

    def _register(self, name: str, value: Any, learn: bool) -> None:
        table = _table(name, value)
        if flag(f"learn_{name}", learn):
            setattr(self, name, table if isinstance(table, nn.Parameter) else nn.Parameter(table.detach()))
        else:
            self.register_buffer(name, table)

    def _dynamics_of(self, **tables: Any) -> Dynamics:
        soft = self._reset_mechanism == "subtract"
        return make_dynamics(
            type(self).__name__,
            **tables,
            decay_input=False,
            leak_given=True,
            reset="soft" if soft else "hard",
            late=soft,
            detach_reset=self._reset_delay,
            surrogate=self._surrogate,
        )

    @property
    def reset_mechanism(self) -> str:
        """ "subtract", "zero" or "none", fixed when the layer is made."""
        return self._reset_mechanism

    @property
    def reset_delay(self) -> bool:
        """Whether a reset comes with the step after its spike; fixed when the layer is made."""
        return self._reset_delay

    @property
    def spike_grad(self) -> Surrogate:
        """The surrogate, as a shape of :mod:`snnfast.surrogate`."""
        return self._surrogate

    def _integrated(self, current: Tensor, decay: Tensor, start: Tensor | None, steps: int | None) -> Tensor:
        """The decaying sum of the currents over time, which nothing resets: [T, ...]."""
        dynamics = make_dynamics(
            type(self).__name__, threshold=math.inf, tau=decay, decay_input=False, leak_given=True, surrogate=NO_SLOPE
        )
        return run(dynamics, current, states_of(start, None, decay), steps, 0, POTENTIAL)[2]

    def _fired(
        self, current: Tensor, mem: Tensor | None, beta: Tensor, threshold: Tensor, steps: int | None
    ) -> tuple[Tensor, Tensor]:
        """Spikes and potentials over time, [T, ...], as the library returns them (potentials where they are)."""
        if self._reset_mechanism == "none":
            potential = self._integrated(current, beta, mem, steps)
            nothing = torch.zeros_like(beta)
            # Each potential is charged into a neuron that keeps none.
            states = states_of(None, threshold, nothing)
            return run(self._dynamics, potential, states, None, 0, 0)[0].to(current.dtype), potential
        if mem is not None and self._reset_mechanism == "zero":  # the library keeps the potential that crossed
            limit = threshold if threshold.dim() == 0 else threshold.view(-1, *(1,) * (mem.dim() - 2))
            mem = torch.where(mem.detach() > limit.detach(), torch.zeros_like(mem), mem)
        states = states_of(mem, threshold, beta)
        wanted = POTENTIAL * self._returns_states
        spikes, _, potential = run(self._dynamics, current, states, steps, 0, wanted)
        if wanted and self._reset_mechanism == "zero" and not self._reset_delay:
            potential = potential - spikes * potential
        return spikes, potential

    @property
    def _returns_states(self) -> bool:
        return self.output or not self.init_hidden

    def _returned(self, sizes: list[int], flat: bool, *over_time: Tensor) -> Any:
        """Spikes, and states where they are returned, with the dimensions of a step again."""
        found = over_time if self._returns_states else over_time[:1]
        found = tuple(f.unflatten(2, sizes[1:]) if flat else f for f in found)
        return found if self._returns_states else found[0]

    def _start(self, name: str, state: Tensor | None, sizes: list[int]) -> Tensor | None:
        """A state to start from, None for rest. An empty one, as reset_mem returns, is the library's for rest."""
        if state is None:
            return None
        if not isinstance(state, Tensor):
            raise not_a_tensor(name, state)
        check_dtype(name, dense(name, state))
        if self.init_hidden:
            raise TypeError(f"{name} cannot be given with init_hidden=True")
        if state.shape == (0,):
            return None
        if list(state.shape) != sizes:
            raise ValueError(
                f"{name} must have the shape of one step, {sizes}, got {list(state.shape)}: a call is given all steps, "
                "[T, B, ...], and takes no loop around it"
            )
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        error_msgs = rest[-1]
        reset, factor = (state_dict.get(f"{prefix}{key}") for key in ("reset_mechanism_val", "graded_spikes_factor"))
        made = RESETS.index(self._reset_mechanism)
        if reset is not None and int(reset) != made:
            self.reset_mechanism_val.fill_(made)
            error_msgs.append(
                f"{prefix}reset_mechanism_val is {int(reset)} there, and the layer was made with "
                f"reset_mechanism={self._reset_mechanism!r}, which is {made}"
            )
        if factor is not None and bool((factor != 1).any()):
            self.graded_spikes_factor.fill_(1.0)
            error_msgs.append(f"{prefix}graded_spikes_factor is not 1 there: graded spikes are not covered")

    def extra_repr(self) -> str:
        reset = f"reset_mechanism={self._reset_mechanism!r}, reset_delay={self._reset_delay}"
        return f"{reset}, spike_grad={self._surrogate}"


def _flattened(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.flatten(1)


class Leaky(_Neuron):
    """``snntorch.Leaky`` over all time steps in one call.

    For every neuron, beta limited to [0, 1]::

        mem_t = beta mem_{t-1} + x_t - threshold [mem_{t-1} > threshold]     (reset_mechanism="subtract")
        mem_t = beta (mem_{t-1}, or 0 where it is > threshold) + x_t         (reset_mechanism="zero")
        mem_t = beta mem_{t-1} + x_t                                         (reset_mechanism="none")
        spk_t = mem_t > threshold

    The gradient ignores the reset. With ``reset_delay=False`` ("zero" and "none") the reset is part of its own step,
    ``mem_t`` is what it leaves, and the gradient flows through it.

    Parameters, buffers and the state dict are the library's, whose checkpoints load.

    Args:
        beta, threshold: a number, or a tensor that broadcasts against one step [B, ...] and is the same for the batch.
        spike_grad: see :func:`equal_surrogate`.
        surrogate_disable: spikes have a gradient of 0.
        init_hidden: calls return spikes alone, and take no ``mem``.
        output: calls return spikes and potentials also with ``init_hidden=True``.
        learn_beta, learn_threshold: whether these are parameters. (A parameter that is given stays the same object.)
        inhibition, state_quant, graded_spikes_factor, learn_graded_spikes_factor: the library's defaults alone.

    Raises:
        TypeError, ValueError: an option of the wrong type or range; a surrogate without an equal here.
        NotImplementedError: an option, or a pair of them, that is not covered; the message says what is instead.
    """

    if TYPE_CHECKING:

        def __call__(self, input_: Tensor, mem: Tensor | None = None, steps: int | None = None) -> Any: ...

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise hints.refuse("Leaky", Leaky, unknown)
        super().__init__(
            {"beta": beta},
            threshold,
            {"beta": learn_beta, "threshold": learn_threshold},
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            reset_mechanism,
            state_quant,
            output,
            graded_spikes_factor,
            learn_graded_spikes_factor,
            reset_delay,
        )

    def forward(self, input_: Tensor, mem: Tensor | None = None, steps: int | None = None) -> Any:
        """Runs the neurons over all time steps.

        Args:
            input_: [T, B, ...], or with ``steps`` a [B, ...] current to hold.
            mem: [B, ...], the potential of the step before the first; None, or what ``reset_mem()`` returns: rest.
                With ``reset_delay=False`` one that is not above the threshold, as calls leave it.
            steps: number of steps T that an input without time axis is held for.

        Returns:
            ``(spk, mem)``, the spikes and potentials of all steps, [T, B, ...]; with ``init_hidden=True`` and
            ``output=False`` spk alone. ``mem[-1]`` is where a next call goes on.
        """
        if isinstance(input_, fx.Proxy):
            return as_leaf(self, input_, mem, steps)
        sizes = sizes_of_a_step(input_, steps)
        mem = self._start("mem", mem, sizes)
        (beta, threshold), flat = aligned(sizes, beta=self.beta.clamp(0, 1), threshold=self.threshold)
        if flat:
            input_, mem = input_.flatten(2 if steps is None else 1), _flattened(mem)
        return self._returned(sizes, flat, *self._fired(input_, mem, beta, threshold, steps))

    def reset_mem(self) -> Tensor:
        """An empty tensor, which as ``mem`` means rest. A call carries nothing that would have to be reset."""
        return self.beta.new_empty(0)

    def init_leaky(self) -> Tensor:
        """The library's older name of :meth:`reset_mem`."""
        return self.reset_mem()


class Synaptic(_Neuron):
    """``snntorch.Synaptic`` over all time steps, in two passes: the synaptic currents, and the neurons they charge.

    For every neuron, alpha and beta limited to [0, 1]::

        syn_t = alpha syn_{t-1} + x_t
        mem_t, spk_t: as Leaky's, with syn_t for the current

    ``reset_mechanism="zero"`` is covered with ``reset_delay=False`` alone: with the delay the library sets the
    potential to 0 after the next current has charged it, and that current is lost.

    Args:
        alpha, learn_alpha: the decay of the synaptic current, as beta is that of the potential.

    The other arguments and the errors are those of :class:`Leaky`.
    """

    alpha: Tensor

    if TYPE_CHECKING:

        def __call__(
            self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None, steps: int | None = None
        ) -> Any: ...

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        reset_delay: bool = True,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise hints.refuse("Synaptic", Synaptic, unknown)
        super().__init__(
            {"beta": beta, "alpha": alpha},
            threshold,
            {"beta": learn_beta, "alpha": learn_alpha, "threshold": learn_threshold},
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            reset_mechanism,
            state_quant,
            output,
            1.0,
            False,
            reset_delay,
        )
        if self._reset_mechanism == "zero" and self._reset_delay:
            raise _refuse(
                "Synaptic", "reset_mechanism='zero' with reset_delay=True", "reset_delay=False, and 'subtract', are"
            )

    def forward(
        self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None, steps: int | None = None
    ) -> Any:
        """Runs the neurons over all time steps; see :meth:`Leaky.forward`.

        Returns:
            ``(spk, syn, mem)``, each [T, B, ...]; with ``init_hidden=True`` and ``output=False`` spk alone.
        """
        if isinstance(input_, fx.Proxy):
            return as_leaf(self, input_, syn, mem, steps)
        sizes = sizes_of_a_step(input_, steps)
        syn, mem = self._start("syn", syn, sizes), self._start("mem", mem, sizes)
        (alpha, beta, threshold), flat = aligned(
            sizes, alpha=self.alpha.clamp(0, 1), beta=self.beta.clamp(0, 1), threshold=self.threshold
        )
        current = input_
        if flat:
            current = input_.flatten(2 if steps is None else 1)
            syn, mem = _flattened(syn), _flattened(mem)
        synaptic = self._integrated(current, alpha, syn, steps)
        spikes, potential = self._fired(synaptic, mem, beta, threshold, None)
        return self._returned(sizes, flat, spikes.to(input_.dtype), synaptic, potential)

    def reset_mem(self) -> tuple[Tensor, Tensor]:
        """Two empty tensors, which as ``syn`` and ``mem`` mean rest."""
        return self.beta.new_empty(0), self.beta.new_empty(0)

    def init_synaptic(self) -> tuple[Tensor, Tensor]:
        """The library's older name of :meth:`reset_mem`."""
        return self.reset_mem()


class RLeaky:
    """``snntorch.RLeaky`` is not covered: its spikes come back as currents of the next step, through weights, so that
    no neuron's steps can be computed without those of the others.

    Raises:
        NotImplementedError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise _refuse("RLeaky", "a neuron whose spikes come back through weights", "keep snntorch's own in its loop")
