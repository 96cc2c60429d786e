"""The compiled core (csrc/bindings.cpp): kernels on CPU threads or a CUDA stream. It knows no torch.

A call is a record with named fields, of which all are given. A field that is None is not given, or not wanted. Tensors
lie as the call's ``layout`` says and are on the backend's device; csrc/calls.h has the shape and dtype of each, under
the same names. A record keeps its tensors alive.
"""

from torch import Tensor

class Layout:
    """How the tensors of a call lie in memory, as [outer, steps, inner]. Strides are of outer and of a step."""

    def __init__(
        self,
        *,
        extent: tuple[int, int, int],
        channels: tuple[int, int],  # how many, and how many neighbouring neurons each has
        held: bool,
        residual_held: bool,
        current: tuple[int, int],
        residual: tuple[int, int],
        spikes: tuple[int, int],
        grad_spikes: tuple[int, int],
        grad_potential: tuple[int, int],
        grad_current: tuple[int, int],
    ) -> None: ...

class Dynamics:
    """h = leak * v + gain * x + drive; a spike where h > threshold (or >=)."""

    def __init__(
        self,
        *,
        leak: float,
        gain: float,
        drive: float,
        threshold: float,
        reset_value: float,
        leaky: bool,
        soft: bool,
        attached: bool,
        fire_on_equal: bool,
        delay: bool,
        input_decays: bool,
        late: bool,
    ) -> None: ...

class Surrogate:
    """A shape, by its code (csrc/calls.h), and its parameters."""

    def __init__(self, *, shape: int, gamma: float, beta: float) -> None: ...

class ChannelCoefficients:
    """Thresholds and time constants per channel, [C] in the state's dtype; None: the number in the dynamics."""

    threshold: Tensor | None
    leak: Tensor | None
    gain: Tensor | None
    drive: Tensor | None
    def __init__(
        self, *, threshold: Tensor | None, leak: Tensor | None, gain: Tensor | None, drive: Tensor | None
    ) -> None: ...

class ForwardCall:
    """The neurons over all steps."""

    dtype: int  # a code: of currents and spikes
    layout: Layout
    dynamics: Dynamics
    coefficients: ChannelCoefficients | None
    normalization: Tensor | None  # [3, C] state: mean, scale, shift
    residual: Tensor | None
    current: Tensor
    initial: Tensor | None
    spikes: Tensor
    last: Tensor | None
    potential: Tensor | None
    checkpoints: Tensor | None
    def __init__(
        self,
        *,
        dtype: int,
        layout: Layout,
        dynamics: Dynamics,
        coefficients: ChannelCoefficients | None,
        normalization: Tensor | None,
        residual: Tensor | None,
        current: Tensor,
        initial: Tensor | None,
        spikes: Tensor,
        last: Tensor | None,
        potential: Tensor | None,
        checkpoints: Tensor | None,
    ) -> None: ...

class BackwardCall:
    """Back through all steps: gradients of what the forward pass was given, as far as they are wanted."""

    dtype: int
    layout: Layout
    dynamics: Dynamics
    coefficients: ChannelCoefficients | None
    surrogate: Surrogate
    normalization: Tensor | None
    through_statistics: Tensor | None  # [2, C] state: what the gradient loses through mean and variance
    residual: Tensor | None
    current: Tensor
    initial: Tensor | None
    checkpoints: Tensor | None
    grad_spikes: Tensor | None
    grad_last: Tensor | None
    grad_potential: Tensor | None
    grad_current: Tensor | None
    grad_residual: Tensor | None
    grad_initial: Tensor | None
    grad_threshold: Tensor | None
    grad_tau: Tensor | None
    sums: Tensor | None  # [2, C] float64: of dL/dI, and of dL/dI * (x - mean)
    workspace: Tensor | None  # [sums_workspace(...)] bytes, where sums are wanted
    deferred: bool  # grad_current is to be dL/dI, of which GradientThroughCall makes dL/dx; CPU only
    def __init__(
        self,
        *,
        dtype: int,
        layout: Layout,
        dynamics: Dynamics,
        coefficients: ChannelCoefficients | None,
        surrogate: Surrogate,
        normalization: Tensor | None,
        through_statistics: Tensor | None,
        residual: Tensor | None,
        current: Tensor,
        initial: Tensor | None,
        checkpoints: Tensor | None,
        grad_spikes: Tensor | None,
        grad_last: Tensor | None,
        grad_potential: Tensor | None,
        grad_current: Tensor | None,
        grad_residual: Tensor | None,
        grad_initial: Tensor | None,
        grad_threshold: Tensor | None,
        grad_tau: Tensor | None,
        sums: Tensor | None,
        workspace: Tensor | None,
        deferred: bool,
    ) -> None: ...

class GradientThroughCall:
    """dL/dI, I the normalized current, to dL/dx, in place: after a deferred backward pass and its sums."""

    dtype: int
    layout: Layout
    normalization: Tensor  # [3, C] state
    through_statistics: Tensor  # [2, C] state
    current: Tensor
    gradient: Tensor
    def __init__(
        self,
        *,
        dtype: int,
        layout: Layout,
        normalization: Tensor,
        through_statistics: Tensor,
        current: Tensor,
        gradient: Tensor,
    ) -> None: ...

class ChannelSumCall:
    """Sums per channel of arrays [arrays, before, channels, after] of values."""

    dtype: int  # of values: the code of float32 or float64
    arrays: int
    before: int
    channels: int
    after: int
    values: Tensor
    sums: Tensor  # [arrays, channels] float64
    workspace: Tensor | None  # [channel_sum_workspace(...)] float64
    def __init__(
        self,
        *,
        dtype: int,
        arrays: int,
        before: int,
        channels: int,
        after: int,
        values: Tensor,
        sums: Tensor,
        workspace: Tensor | None,
    ) -> None: ...

class MomentsCall:
    """The sums per channel of what every neuron contributes to its channel's moments."""

    dtype: int
    layout: Layout
    current: Tensor
    sums: Tensor  # [2, C] float64
    workspace: Tensor  # [sums_workspace(...)] bytes
    def __init__(self, *, dtype: int, layout: Layout, current: Tensor, sums: Tensor, workspace: Tensor) -> None: ...

class StatisticsCall:
    """A batch's moments from the neurons' contributions, and what the currents are normalized by."""

    dtype: int
    layout: Layout
    current: Tensor
    count: float  # values per channel
    sums: Tensor  # [2, C] float64: the contributions
    eps: float
    parameter_dtype: int  # of weight and bias
    weight: Tensor | None
    bias: Tensor | None
    moments: Tensor  # [2, C] float64: mean, biased variance
    tables: Tensor  # [3, C] state: mean, scale, shift
    tracked: Tensor  # [2, C] state: mean, unbiased variance
    def __init__(
        self,
        *,
        dtype: int,
        layout: Layout,
        current: Tensor,
        count: float,
        sums: Tensor,
        eps: float,
        parameter_dtype: int,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: Tensor,
        tables: Tensor,
        tracked: Tensor,
    ) -> None: ...

class NormalizationCall:
    """What the currents are normalized by, of given moments."""

    dtype: int
    channels: int
    eps: float
    moments: Tensor
    parameter_dtype: int
    weight: Tensor | None
    bias: Tensor | None
    tables: Tensor
    def __init__(
        self,
        *,
        dtype: int,
        channels: int,
        eps: float,
        moments: Tensor,
        parameter_dtype: int,
        weight: Tensor | None,
        bias: Tensor | None,
        tables: Tensor,
    ) -> None: ...

class NormalizationGradientsCall:
    """Gradients of weight and bias, and what the gradient loses through the statistics, of the sums per channel."""

    dtype: int
    channels: int
    eps: float
    count: float
    sums: Tensor  # [2, C] float64
    moments: Tensor
    tables: Tensor
    through_statistics: Tensor  # [2, C] state
    parameter_dtype: int  # of the gradients
    grad_weight: Tensor
    grad_bias: Tensor
    def __init__(
        self,
        *,
        dtype: int,
        channels: int,
        eps: float,
        count: float,
        sums: Tensor,
        moments: Tensor,
        tables: Tensor,
        through_statistics: Tensor,
        parameter_dtype: int,
        grad_weight: Tensor,
        grad_bias: Tensor,
    ) -> None: ...

class PackBitsCall:
    """``count`` spikes to bits."""

    dtype: int
    count: int
    spikes: Tensor
    bits: Tensor
    def __init__(self, *, dtype: int, count: int, spikes: Tensor, bits: Tensor) -> None: ...

class UnpackBitsCall:
    """Bits to ``count`` spikes."""

    dtype: int
    count: int
    bits: Tensor
    spikes: Tensor
    def __init__(self, *, dtype: int, count: int, bits: Tensor, spikes: Tensor) -> None: ...

class _Backend:
    """What runs the calls."""

    def forward(self, call: ForwardCall) -> None: ...
    def backward(self, call: BackwardCall) -> None: ...
    def channel_sum(self, call: ChannelSumCall) -> None: ...
    def moments(self, call: MomentsCall) -> None: ...
    def statistics(self, call: StatisticsCall) -> None: ...
    def normalization(self, call: NormalizationCall) -> None: ...
    def normalization_gradients(self, call: NormalizationGradientsCall) -> None: ...
    def pack_bits(self, call: PackBitsCall) -> None: ...
    def unpack_bits(self, call: UnpackBitsCall) -> None: ...
    def sums_workspace(self, dtype: int, layout: Layout) -> int: ...
    def channel_sum_workspace(self, arrays: int, before: int, channels: int, after: int) -> int: ...

class Cpu(_Backend):
    """Runs on CPU threads, with the GIL released."""

    def __init__(self, threads: int) -> None: ...
    def gradient_through(self, call: GradientThroughCall) -> None: ...

class Cuda(_Backend):
    """Launches on a stream of a device, given by its address; 0 is the default stream."""

    def __init__(self, device: int, stream: int) -> None: ...

def variant_names(direction: int, dtype: int) -> list[str]:
    """The CUDA kernels that are built for a dtype, as C++ names them; direction 0 is forward, 1 backward."""

def use_openmp_of(library: str) -> bool:
    """Takes OpenMP's entry points from a library that is loaded; whether it has them. Without: one thread."""

def instruction_set() -> str:
    """The one that CPU kernels are run for."""

def use_instruction_set(name: str) -> bool:
    """Runs CPU kernels of another instruction set; False where it is unknown or the processor lacks it."""

def streaming_threshold() -> int:
    """Bytes of an output from which CPU kernels write it past the caches: a quarter of what a core's cache holds."""

def use_streaming_threshold(bytes: int) -> None:
    """Another number of bytes, for tests. Results do not depend on it."""

checkpoint_interval: int
with_cuda: bool
cuda_toolkit: str
cuda_architectures: str
compiler: str
