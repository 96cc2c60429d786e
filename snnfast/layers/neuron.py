"""Integrate-and-fire neurons as torch.nn layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor, fx, nn

from snnfast._arguments import hints
from snnfast.autograd import integrate
from snnfast.dynamics import Dynamics, check_dtype, check_time_dim, flag, given_tau, make_dynamics
from snnfast.layers.base import Layer, as_leaf
from snnfast.layers.state_dict import WithNumbers, read_options, write_options
from snnfast.layers.tables import LOGITS, logit_of, reset_tables, set_table, show_table, start_of, write_table
from snnfast.ops.options import LAST, States, states_of
from snnfast.ops.recording import refuse_to_record
from snnfast.surrogate import Surrogate

__all__ = ["IF", "LIF"]

_OPTIONS = ("reset", "reset_value", "surrogate", "detach_reset", "fire_on_equal", "delay")
_OPTION_DEFAULTS = {"reset": "hard", "reset_value": 0.0, "detach_reset": None, "fire_on_equal": False, "delay": False}


class ResetRule(str):
    """The option ``reset`` of a layer, a word; called, it forgets the layer's carried potential.

    Other libraries reset a network by calling ``reset()`` of every module that has one.
    """

    layer: Neuron

    def __call__(self) -> None:
        self.layer.reset_state()


class Neuron(WithNumbers, Layer):
    """What IF and LIF share: options, threshold, carried state, checkpoints.

    Options are ordinary attributes; assigning one (``layer.surrogate = …``) checks it and takes effect at once. A
    number assigned to a threshold or tau that is a tensor is written into it.
    """

    # What nn.Module's __getattr__ hides from a type checker: without these, Tensor | Module.
    threshold: float | Tensor
    reset_value: float
    surrogate: Surrogate
    detach_reset: bool | None
    fire_on_equal: bool
    delay: bool
    time_dim: int
    carry_state: bool
    _dynamics: Dynamics
    _leak_options: tuple[str, ...] = ()
    _numbers = ("threshold",)
    _numbers_elsewhere = False  # whether another module's state dict has them: of a fused layer, the neuron's
    _written: tuple[dict[str, Any], float] | None = None  # see write_options

    if TYPE_CHECKING:

        def __call__(self, current: Tensor, steps: int | None = None) -> Tensor: ...

    def __init__(
        self,
        threshold: float | Tensor,
        tau: float | Tensor | None,
        decay_input: bool,
        learn_threshold: bool,
        time_dim: int,
        carry_state: bool,
        device: Any,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_time_dim(time_dim)
        checked = make_dynamics(type(self).__name__, threshold=threshold, tau=tau, decay_input=decay_input, **options)
        if flag("carry_state", carry_state) and checked.delay:
            raise ValueError(
                "delay=True cannot be used with carry_state=True: the potential alone does not hold the pending spike"
            )
        self.time_dim = time_dim
        self.carry_state = carry_state
        self._state: Tensor | None = None
        # What tensors start from, and which are learned, whatever stands for them later (a parametrization, a pruned
        # tensor, a plain one in a replica).
        self._started: dict[str, float | Tensor] = {}
        self._learned = ("threshold",) if flag("learn_threshold", learn_threshold) else ()
        set_table(self, "threshold", threshold, learn_threshold, device, dtype)
        for name in _OPTIONS:
            super().__setattr__(name, checked.surrogate if name == "surrogate" else options[name])
        super().__setattr__("_dynamics", checked)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_dynamics" in self.__dict__:
            if name in _OPTIONS or name in self._leak_options or name == "threshold":
                value = self._checked(name, value)
                if value is None:
                    return
            elif name in ("tau", "decay_input"):
                raise TypeError(f"{name}: {type(self).__name__} has no leak; LIF has one")
            elif name in ("time_dim", "carry_state"):
                raise AttributeError(f"{name} is fixed when the layer is made")
            elif name == "training":
                flag(name, value)
            elif name in hints.NAMES and type(self).__module__.startswith("snnfast."):
                # It would change nothing. Subclasses elsewhere may have options of these names.
                raise hints.refuse(type(self).__name__, type(self), {name: value})
        super().__setattr__(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        """An option's value to be stored, in effect already; None where it is stored already too."""
        table, tensor = name in ("threshold", "tau"), isinstance(value, Tensor)
        present = self.__dict__.get(name)  # of a table: a number; None where it is registered
        if table and tensor and not isinstance(present, float):
            return value  # a tensor in place of another, as torch does it
        options = {**self._options(), name: value}
        checked = make_dynamics(type(self).__name__, **options)
        if checked.delay and self.carry_state:
            raise ValueError("delay=True cannot be used with carry_state=True")
        if table and not tensor and hasattr(self, name) and (present is None or name in self._started):
            write_table(self, name, value)
            return None
        super().__setattr__("_dynamics", checked)
        if name == "surrogate":
            return checked.surrogate
        if table and tensor and not isinstance(value, nn.Parameter) and not value.requires_grad:
            # As when the layer is made: a buffer, which moves and is saved with the layer.
            del self.__dict__[name]
            set_table(self, name, value, learn=False)
            return None
        return float(value) if table and not tensor else value

    def _options(self) -> dict[str, Any]:
        return {"threshold": getattr(self, "threshold", None)} | {name: getattr(self, name) for name in _OPTIONS}

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        """Threshold and tau where they are tensors."""
        threshold = self.threshold
        return (threshold if isinstance(threshold, Tensor) else None), None

    def forward(self, current: Tensor, steps: int | None = None) -> Tensor:
        """Runs the neurons over all time steps.

        Args:
            current: [T, B, ...] ([B, T, ...] with time_dim=1), or with ``steps`` a [B, ...] current to hold.
            steps: number of steps T that a current without time axis is held for.

        Returns:
            Spikes, zeros and ones: the current's shape, dtype and memory format; [T, B, ...] ([B, T, ...]) when held.

        Raises:
            TypeError, ValueError, RuntimeError, NotImplementedError: see snnfast.functional.integrate_and_fire.
        """
        if isinstance(current, fx.Proxy):
            return as_leaf(self, current, steps)
        return self._over_time(current, steps)

    def _over_time(self, current: Tensor, *arguments: Any) -> Tensor:
        """The spikes of one call, with the carried state in and out. ``arguments`` are those of ``_run``."""
        threshold, tau = self._tables()
        if not self.carry_state:
            return self._run(current, states_of(None, threshold, tau), 0, *arguments)[0]
        if "_is_replica" in self.__dict__:
            raise RuntimeError(
                f"{type(self).__name__} with carry_state=True runs as one of DataParallel's replicas, which are thrown "
                "away after the call, and the state with them: use DistributedDataParallel"
            )
        refuse_to_record(
            type(self).__name__,
            current,
            "it carries its state from call to call; record the functional form, whose v0 is an argument and whose "
            "v_last is a result",
        )
        v0 = self._state
        if not torch.compiler.is_compiling():
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    f"{type(self).__name__} with carry_state=True was called during a backward pass, as activation "
                    "checkpointing does to compute again: it would start from the state that the first call left. Use "
                    "the functional form there, with v0 as an argument and v_last as a result"
                )
            if v0 is not None and v0.is_inference() and not torch.is_inference_mode_enabled():
                v0 = v0.clone()  # backward may not keep an inference tensor
        if v0 is not None and isinstance(current, Tensor):
            v0 = v0.to(current.device)
        spikes, v_last, _ = self._run(current, states_of(v0, threshold, tau), LAST, *arguments)
        if torch.compiler.is_compiling():
            self._state = v_last
        else:
            self.__dict__["_state"] = v_last  # setting an attribute of a module would cost a small step a tenth
        return spikes

    def _run(self, current: Tensor, states: States, outputs: int, steps: int | None) -> tuple[Tensor, Tensor, Tensor]:
        return integrate.run(self._dynamics, current, states, steps, self.time_dim, outputs)

    @property
    def reset(self) -> ResetRule:
        """The option, hard or soft. ``layer.reset()`` is :meth:`reset_state`, for those who reset all modules so."""
        rule = ResetRule(self.__dict__["reset"])
        rule.layer = self
        return rule

    @reset.setter
    def reset(self, value: str) -> None:
        self.__dict__["reset"] = str(value)

    @property
    def state(self) -> Tensor | None:
        """The carried potential, shaped like one step, in the state's dtype; None before a call and without one."""
        return self._state

    def reset_state(self) -> None:
        """Forgets the carried potential: the next call starts at rest, with any batch size."""
        self._state = None

    def detach_state(self) -> None:
        """Keeps the carried potential's values and cuts its graph (truncated backpropagation through time)."""
        if self._state is not None:
            self._state = self._state.detach()

    def reset_parameters(self) -> None:
        """Gives a threshold and tau that are tensors, learned or not, the values given when the layer was made.

        What a network made on the meta device needs after ``to_empty``. Numbers are options, and stay what they are.

        Raises:
            RuntimeError: the values were given as a tensor on the meta device, which has none.
        """
        reset_tables(self)

    def __getstate__(self) -> dict[str, Any]:
        # nn.Module's leaves out what layer.compile() made, which would run the original. A carried potential in the
        # middle of a graph can be neither copied nor pickled; its values can.
        state = super().__getstate__()
        if state["_state"] is not None:
            state["_state"] = state["_state"].detach().clone()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_started" not in self.__dict__:  # pickled before layers knew what their tensors started from
            tables: dict[str, Any] = {**self._parameters, **self._buffers}
            names = {"threshold": "threshold", "tau_logit": "tau"}
            learned = tuple(name for key, name in names.items() if key in self._parameters)
            started = {key: start_of(tables[key]) for key in ("threshold", "tau", "tau_logit") if key in tables}
            self.__dict__.update(_learned=learned, _started=started)

    def _numbered(self) -> Neuron | None:
        return None if self._numbers_elsewhere else self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write_options(self, destination, prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if not self._numbers_elsewhere or "surrogate" in local_metadata:  # of a fused layer, the neuron's name has it
            read_options(self, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        shown = [f"threshold={show_table(self.threshold)}", f"reset={self.reset!r}", f"surrogate={self.surrogate}"]
        for name, default in _OPTION_DEFAULTS.items():
            value = getattr(self, name)
            if name != "reset" and value != default:
                shown.append(f"{name}={float(value) if name == 'reset_value' else value!r}")
        if self.time_dim:
            shown.append(f"time_dim={self.time_dim}")
        if self.carry_state:
            shown.append("carry_state=True")
        if "threshold" in self._learned or isinstance(self.threshold, nn.Parameter):
            shown.append("learn_threshold=True")
        return ", ".join(shown)


class IF(Neuron):
    """Integrate-and-fire neurons, a drop-in activation for spiking networks (the paper's equations 1, 2, 8 and 9).

    ``layer(current)`` takes currents [T, B, ...] and returns spikes of the same shape, dtype and memory format;
    ``layer(current, steps=T)`` holds one [B, ...] current for T steps. A layer starts every call at rest unless
    ``carry_state=True``. The recursion is in :func:`snnfast.functional.integrate_and_fire`.

    Args:
        threshold: a number >= 0, a tensor of one element, or a 1-d tensor with one value per channel (the dimension
            after time and batch).
        reset: "hard" (to reset_value) or "soft" (subtract the threshold).
        reset_value: potential after a hard reset.
        surrogate: a shape from :mod:`snnfast.surrogate`; None is ``FastSigmoid(gamma=10.0, beta=1.0)``.
        detach_reset: whether gradients ignore the reset; None is the paper's rule (hard: True, soft: False).
        fire_on_equal: fire at potentials equal to the threshold too.
        delay: emit each spike one step later (not with carry_state).
        time_dim: the time dimension of inputs and outputs, 0 or 1.
        carry_state: start each call from the last potential of the call before. See :meth:`reset_state` and
            :meth:`detach_state`. A batch of another shape is a ValueError until the state is reset; the state follows
            the current to another device and dtype. Under activation checkpointing, which calls a layer once more
            during backward, it is a RuntimeError: use the functional form there, whose v0 is an argument.
        learn_threshold: make the threshold a parameter.
        device, dtype: of a threshold (and tau) that is learned or a tensor; None is torch's default for numbers and the
            tensor's own otherwise. Numbers have neither, and spikes have the current's.

    Checkpoints keep the surrogate's shape, gamma and beta, in the state dict's metadata, which torch.save stores;
    loading a plain ``dict(...)``, which has none, warns. A threshold that is a number is an option, as the reset is,
    and in the state dict only where it was measured: see :func:`snnfast.tuning.hold_thresholds`.

    Raises:
        TypeError, ValueError: an option of the wrong type or range; the message names it.
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        *,
        reset: str = "hard",
        reset_value: float = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool | None = None,
        fire_on_equal: bool = False,
        delay: bool = False,
        time_dim: int = 0,
        carry_state: bool = False,
        learn_threshold: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise hints.refuse("IF", IF, unknown)
        super().__init__(
            threshold,
            None,
            False,
            learn_threshold,
            time_dim,
            carry_state,
            device,
            dtype,
            reset=reset,
            reset_value=reset_value,
            surrogate=surrogate,
            detach_reset=detach_reset,
            fire_on_equal=fire_on_equal,
            delay=delay,
        )


class LIF(Neuron):
    """Leaky integrate-and-fire neurons; as :class:`IF`, with a leak.

    Args:
        tau: time constant in steps: a number > 1, a tensor of one element, or one value per channel.
        decay_input: whether the current is divided by tau too.
        learn_tau: learn it as the parameter ``tau_logit``, 1/tau = sigmoid(tau_logit), so that tau stays above 1;
            ``layer.tau`` reads the time constant.

    The other arguments, state and errors are those of :class:`IF`; the recursion is in
    :func:`snnfast.functional.leaky_integrate_and_fire`.
    """

    tau: float | Tensor
    decay_input: bool
    tau_logit: Tensor
    _leak_options = ("tau", "decay_input")

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        threshold: float | Tensor = 1.0,
        *,
        decay_input: bool = True,
        learn_tau: bool = False,
        reset: str = "hard",
        reset_value: float = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool | None = None,
        fire_on_equal: bool = False,
        delay: bool = False,
        time_dim: int = 0,
        carry_state: bool = False,
        learn_threshold: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise hints.refuse("LIF", LIF, unknown)
        super().__init__(
            threshold,
            given_tau(tau),
            decay_input,
            learn_threshold,
            time_dim,
            carry_state,
            device,
            dtype,
            reset=reset,
            reset_value=reset_value,
            surrogate=surrogate,
            detach_reset=detach_reset,
            fire_on_equal=fire_on_equal,
            delay=delay,
        )
        Layer.__setattr__(self, "decay_input", decay_input)
        if flag("learn_tau", learn_tau):
            dtype = torch.get_default_dtype() if dtype is None else dtype
            set_table(self, "tau_logit", logit_of(tau, dtype), True, device, dtype)
            Layer.__setattr__(self, "_learned", (*self._learned, "tau"))
            # From here on the dynamics take tau as a tensor.
            Layer.__setattr__(self, "_dynamics", replace(self._dynamics, tau=0.0))
        else:
            set_table(self, "tau", tau, False, device, dtype)

    def __getattr__(self, name: str) -> Any:
        # `tau` of a layer that learns it is not stored; of the others it is an attribute or a buffer.
        if name == "tau" and "tau" in self.__dict__.get("_learned", ()):
            logit = self.tau_logit
            check_dtype("tau_logit", logit)
            return 1 + torch.exp(-logit.clamp(*LOGITS[logit.dtype]))
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tau":
            value = given_tau(value)
        if name == "tau" and "tau" in self.__dict__.get("_learned", ()):
            make_dynamics("LIF", tau=value)
            logit, present = logit_of(value, self.tau_logit.dtype), self.tau_logit
            if isinstance(logit, Tensor) and logit.numel() > 1 and logit.shape != present.shape:
                raise ValueError(
                    f"tau must be a number or have the shape {list(present.shape)}, got {list(logit.shape)}"
                )
            write_table(self, "tau_logit", logit)
            return
        super().__setattr__(name, value)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "tau": getattr(self, "tau", None), "decay_input": self.decay_input}

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        threshold, _ = super()._tables()
        tau = self.tau
        return threshold, (tau if isinstance(tau, Tensor) else None)

    def extra_repr(self) -> str:
        if "tau" in self._learned:
            shown: Any = self.tau
            learned = ", learn_tau=True"
            tau = f"{list(shown.shape)} learned"
            if shown.numel() == 1 and type(shown) is Tensor and not shown.is_meta:
                tau = show_table(shown.detach().reshape(()))
        else:
            tau, learned = show_table(self.tau), ""
        return f"tau={tau}, decay_input={self.decay_input}, {super().extra_repr()}{learned}"
