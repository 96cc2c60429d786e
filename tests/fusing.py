"""Networks for the tests of fuse, and what it means that one computes what another did."""

from __future__ import annotations

import copy

import pytest
import torch
from resnet import conv, norm
from torch import nn

import snnfast as sf

CHANNELS = 3


def currents(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def default_currents() -> torch.Tensor:
    return currents(4, 2, CHANNELS, 5, 5)


def unlike_the_defaults(model: nn.Module) -> nn.Module:
    """Batch norms whose every number matters."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.3
            if module.running_mean is not None:
                module.running_mean -= 1
    return model


class Block(nn.Module):
    """Children that the forwards below call in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.conv_bn = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.conv_over_time = conv(CHANNELS, CHANNELS, 3)
        self.bn_over_time = norm(CHANNELS)
        self.conv_bn_over_time = sf.OverTime(
            nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))
        )
        self.shortcut = nn.Sequential(conv(CHANNELS, CHANNELS, 1), norm(CHANNELS))
        self.split = nn.Unflatten(0, (4, 2))
        self.sn = sf.IF()
        self.sn_and_more = nn.Sequential(sf.LIF(), sf.OverTime(nn.AvgPool2d(1)))
        self.sn_time_second = sf.IF(time_dim=1)
        self.steps = 4
        self.scale = 0.5
        self.added = True
        self.offset = nn.Parameter(torch.rand(CHANNELS, 1, 1))


def cases(table: dict[str, tuple]) -> list:
    return [pytest.param(*values, id=name) for name, values in table.items()]


def block(forward, **attributes) -> nn.Module:
    torch.manual_seed(0)
    model = type("Net", (Block,), {"forward": forward})().double()
    for name, value in attributes.items():
        setattr(model, name, value)
    return unlike_the_defaults(model)


def reason(report: sf.FuseReport, name: str) -> str:
    assert name not in [entry.batch_norm for entry in report.fused]
    (found,) = [entry.reason for entry in report.left if entry.name == name]
    return found


def run(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, every gradient, every buffer."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(1)
    out = model(x * 1.0)
    (out * currents(*out.shape, seed=9)).sum().backward()
    results = {"output": out.detach(), "gradient of the input": x.grad}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.requires_grad:
            results[name] = tensor.clone()
        elif tensor.grad is not None:
            results[f"gradient of {name}"] = tensor.grad
    return results


def assert_same(model: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    for training in (True, False):
        results, expected = run(model.train(training), x), run(plain.train(training), x)
        assert list(results) == list(expected)
        largest = max(wanted.abs().max().item() for wanted in expected.values())
        for name, wanted in expected.items():
            # A bias ahead of a batch norm has the gradient 0, and either side's rounding of it.
            scale = max(wanted.abs().max().item(), 1e-3 * largest)
            torch.testing.assert_close(results[name], wanted, rtol=0, atol=1e-10 * scale, msg=lambda m, n=name: n + m)
        assert expected["output"].any() and expected["gradient of the input"].any()


def fused_like(model: nn.Module, x: torch.Tensor, count: int = 1) -> sf.FuseReport:
    """Fuses the model, which must then compute what it did, keep its keys, and survive copying."""
    plain = copy.deepcopy(model)
    report = sf.fuse(model)
    assert len(report.fused) == count, str(report)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same(copy.deepcopy(model), copy.deepcopy(plain), x)
    assert_same(model, plain, x)
    return report


def left_like(model: nn.Module, x: torch.Tensor) -> sf.FuseReport:
    """A model that fuse leaves alone is left exactly as it was."""
    plain = copy.deepcopy(model)
    modules, attributes = list(model.modules()), set(model.__dict__)
    report = sf.fuse(model)
    assert not report.fused
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert set(model.__dict__) == attributes and type(model) is type(plain)
    assert_same(model, plain, x)
    return report


# Forwards that fuse, by the pattern


def flat(self, x):
    return self.bn(self.conv(x.flatten(0, 1)))


def over_time(self, x):
    return self.bn_over_time(self.conv_over_time(x))


def unpacked(self, x):
    steps, batch = x.shape[:2]
    return self.sn(flat(self, x).unflatten(0, (steps, batch)))


def sizes_as_view(self, x):
    steps, batch, _, height, width = x.shape
    return self.sn(self.bn(x.flatten(0, 1)).view(steps, batch, CHANNELS, height, width))


def sizes_of_the_output(self, x):
    y = flat(self, x)
    return self.sn(y.reshape(-1, x.size(1), y.size(1), y.shape[2], y.shape[3]))


def in_place_addition(self, x):
    y = over_time(self, x)
    y += x
    return self.sn(y)


def shortcut_computed_in_between(self, x):
    y = over_time(self, x)
    shortcut = self.shortcut(x)
    return self.sn(shortcut + y)


def dropped_shortcut(self, x):
    return self.sn(over_time(self, x) + nn.functional.dropout(x, 0.5, self.training))


def two_in_one_forward(self, x):
    y = self.sn_and_more(self.bn_over_time(x) + x)
    return self.sn(self.bn(self.conv(y.flatten(0, 1))).unflatten(0, (4, 2)) + x)


FORWARDS = {
    "flatten and unflatten": unpacked,
    "unflatten to a shape": lambda self, x: self.sn(flat(self, x).unflatten(0, x.shape[:2])),
    "torch.unflatten": lambda self, x: self.sn(torch.unflatten(flat(self, x), 0, (4, 2))),
    "nn.Unflatten": lambda self, x: self.sn(self.split(flat(self, x))),
    "a Sequential that ends in batch norm": lambda self, x: self.sn(self.conv_bn(x.flatten(0, 1)).unflatten(0, (4, 2))),
    "view of sizes": sizes_as_view,
    "view as a shape": lambda self, x: self.sn(self.bn(x.flatten(0, 1)).view(x.shape)),
    "view_as": lambda self, x: self.sn(self.bn(x.flatten(0, 1)).view_as(x)),
    "reshape to the output's own sizes": sizes_of_the_output,
    "keywords": lambda self, x: self.sn(current=self.bn_over_time(over_time=x), steps=None),
    "neuron in a Sequential": lambda self, x: self.sn_and_more(over_time(self, x)),
    "time second": lambda self, x: self.sn_time_second(over_time(self, x)),
}
ADDITIONS = {
    "shortcut last": lambda self, x: self.sn(over_time(self, x) + x),
    "shortcut first": lambda self, x: self.sn(x + over_time(self, x)),
    "+=": in_place_addition,
    ".add": lambda self, x: self.sn(over_time(self, x).add(x)),
    ".add_": lambda self, x: self.sn(over_time(self, x).add_(x)),
    "torch.add": lambda self, x: self.sn(torch.add(x, over_time(self, x), alpha=1)),
    "torch.add with names": lambda self, x: self.sn(torch.add(input=over_time(self, x), other=x)),
    "convolution and batch norm over time": lambda self, x: self.sn(self.conv_bn_over_time(x) + x),
    "Sequential of OverTime": lambda self, x: self.sn(self.shortcut(x) + x),
    "before unflatten": lambda self, x: self.sn((flat(self, x) + x.flatten(0, 1)).unflatten(0, (4, 2))),
    "after unflatten": lambda self, x: self.sn(flat(self, x).unflatten(0, (4, 2)) + x),
    "broadcast": lambda self, x: self.sn(over_time(self, x) + x.mean((3, 4), keepdim=True)),
    "broadcast after unflatten": lambda self, x: self.sn(flat(self, x).unflatten(0, (4, 2)) + x.mean(0, keepdim=True)),
    "neuron in a Sequential": lambda self, x: self.sn_and_more(over_time(self, x) + x),
    "time second": lambda self, x: self.sn_time_second(over_time(self, x) + x),
    "a scaled shortcut": lambda self, x: self.sn(over_time(self, x) + self.scale * x),
    "a shortcut with dropout": dropped_shortcut,
}
HELD = {
    "held": lambda self, x: self.sn(self.bn(self.conv(x[0])), steps=4),
    "held by an attribute": lambda self, x: self.sn(self.bn(x[0]), self.steps),
    "held with an addition": lambda self, x: self.sn(self.bn(x[0]) + x[1], steps=4),
    "held, time second": lambda self, x: self.sn_time_second(self.bn(x[0]), steps=4),
}
