"""Figure 3: the gradient over the layers of a ResNet18 explodes or vanishes with the surrogate's sharpness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from snnfast._plots import whole_numbers
from snnfast.tuning import GammaSearch, GradientProfile, gradient_profile, tune_gamma
from snnfast.tuning.gamma import set_gamma
from snnfast.tuning.trial import on_trial

from .experiment import Context, Experiment, Outcome, Plot, Settings, Table, Verdict
from .workbench import COLOURS, dress, images, network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLODES, VANISHES, LOW, HIGH, MOST, TOLERANCE = 3.0, 1 / 3, 0.9, 1.1, 25, 0.05
"""Bounds of the verdicts, fixed before anything was measured."""


SETTINGS = {
    "small": Settings(data="cifar10", size=16, model="resnet18", tuning=(4, 16)),
    "full": Settings(data="cifar10", model="resnet18"),
}


def measure(settings: Settings, context: Context) -> Outcome:
    """Profiles at γ = 1, 10, 100 and the tuned one, at initialization.

    On ``settings.tuning`` batches of images that the search did not see, as many as it sees.
    """
    count, batch_size = settings.tuning
    data = images(settings.data, context, train=2 * count * batch_size, test=1, size=settings.size)
    model = network(settings.model, data, context, **settings.options)
    batches = list(data.train.batches(batch_size))
    seen, fresh = batches[:count], batches[count:]
    profiles: dict[str, GradientProfile] = {}
    context.say(f"  gradients of {settings.model} on {count} batches of {batch_size}")
    for gamma in (1.0, 10.0, 100.0):
        profiles[f"{gamma:g}"] = _profile(model, gamma, fresh)
        context.say(f"  γ = {gamma:g}: first half over the rest {profiles[f'{gamma:g}'].ratio:.3g}")
    context.say(f"  balancing γ on {count} batches of {batch_size}, in at most {MOST} evaluations")
    # The default sharpness is where the search begins, whatever was measured before.
    search = tune_gamma(model, seen, max_evaluations=MOST)
    profiles["tuned"] = gradient_profile(model, fresh)
    context.say(f"  γ = {search.gamma:.3g}, tuned: {profiles['tuned'].ratio:.3g} on fresh batches")
    layers = Table(
        "gradients",
        "Mean absolute gradient of the loss with respect to the current entering each spiking layer",
        ("layer", "name", *(f"gamma {_label(name, search.gamma)}" for name in profiles)),
        [
            [number + 1, name, *(profile.values[number] for profile in profiles.values())]
            for number, name in enumerate(profiles["tuned"].names)
        ],
    )
    trace = Table(
        "search",
        "The search for γ: ratio of the mean gradients of the first half and the rest",
        ("evaluation", "gamma", "ratio"),
        [[n, *pair] for n, pair in enumerate(zip(search.gammas, search.ratios, strict=True), 1)],
    )
    ratios = {name: profile.ratio for name, profile in profiles.items()}
    size = settings.size or data.image_shape[1]
    return Outcome(
        [layers, trace],
        [Plot("gradients", "The gradient over the layers, at initialization", _drawing(profiles, search.gamma))],
        verdicts(ratios, search),
        [
            f"{settings.model}, {settings.data} at {size}×{size}, {count} batches of {batch_size} "
            f"for the search and as many others for the curves. The paper's figure 3 gives curves and no numbers."
        ],
    )


def _profile(model: nn.Module, gamma: float, batches: list[tuple[Tensor, Tensor]]) -> GradientProfile:
    with on_trial(model, training=True) as layers:  # which gives them their own surrogates back
        set_gamma(layers, gamma)
        return gradient_profile(model, batches)


def _label(name: str, tuned: float) -> str:
    return f"{tuned:.4g} (tuned)" if name == "tuned" else name


def verdicts(ratios: dict[str, float], search: GammaSearch) -> list[Verdict]:
    """The inequalities, for the ratios at γ = "1", "100" and "tuned" on fresh batches, and for the search."""
    small, large, balanced = (ratios[name] for name in ("1", "100", "tuned"))
    return [
        Verdict(
            f"at γ = 1 the gradient explodes: first half over the rest at least {EXPLODES:g}",
            small >= EXPLODES,
            f"{small:.3g}",
            "for small values of γ = 1 the gradient explodes",
        ),
        Verdict(
            "at γ = 100 the gradient vanishes: first half over the rest at most 1/3",
            large <= VANISHES,
            f"{large:.3g}",
            "for large values γ = 100 the gradient vanishes",
        ),
        Verdict(
            f"at the tuned γ it does neither: between {LOW} and {HIGH} on batches that the search did not see",
            LOW <= balanced <= HIGH,
            f"{balanced:.3g} at γ = {search.gamma:.3g}",
            "because of this monotonic relation the optimal γ can be found fast by using bisection search",
        ),
        Verdict(
            f"the search ends within 5 % of a ratio of 1 in at most {MOST} evaluations",
            len(search.gammas) <= MOST and abs(search.ratio - 1) <= TOLERANCE,
            f"{search.ratio:.3g} after {len(search.gammas)}",
        ),
    ]


def _drawing(profiles: dict[str, GradientProfile], tuned: float) -> Any:
    colours = {"1": COLOURS["ann"], "10": COLOURS["converted"], "100": COLOURS["fixed"], "tuned": COLOURS["snn"]}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, profile in profiles.items():
            # A gradient of 0 has no place on a logarithmic scale.
            shown = [value if value > 0 else float("nan") for value in profile.values]
            axes.plot(
                range(1, len(shown) + 1),
                shown,
                marker="o",
                markersize=4,
                color=colours[name],
                label=f"γ = {_label(name, tuned)}",
            )
        axes.set_yscale("log")
        whole_numbers(axes.xaxis)
        dress(axes, xlabel="spiking layer, from the input", ylabel="mean absolute gradient", legend=True)

    return draw


EXPERIMENT = Experiment(
    "fig3", "Gradients explode and vanish with the surrogate's sharpness", "figure 3, section 2.5", SETTINGS, measure
)
