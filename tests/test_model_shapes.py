"""The paper's networks have the layers, strides and parameters that MATH.md's section 9 says, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnfast import models

# Shapes: kernel, stride, and the output's channels and height of every convolution; in and out of every linear layer.


def traced(network: nn.Module, *image: int) -> list[tuple]:
    """What the layers of a network on the meta device see, in the order in which they run."""
    rows = []

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            assert output.shape[-1] == output.shape[-2]
            rows.append((module.kernel_size[0], module.stride[0], output.shape[-3], output.shape[-1]))
        else:
            rows.append((module.in_features, module.out_features))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    network(torch.empty(2, *image, device="meta"))
    return rows


def basic(channels: int, size: int, stride: int, *, projected: bool) -> list[tuple]:
    shortcut = [(1, stride, channels, size)] if projected else []
    return [*shortcut, (3, stride, channels, size), (3, 1, channels, size)]


def bottleneck(width: int, before: int, after: int, *, projected: bool) -> list[tuple]:
    stride = before // after
    shortcut = [(1, stride, 4 * width, after)] if projected else []
    return [*shortcut, (1, 1, width, before), (3, stride, width, after), (1, 1, 4 * width, after)]


def bottlenecks(sizes: tuple[int, ...]) -> list[tuple]:
    """The 16 blocks of ResNet50; ``sizes``: of the maps before the first stage and after each."""
    rows = []
    for width, count, before, after in zip((64, 128, 256, 512), (3, 4, 6, 3), sizes, sizes[1:], strict=False):
        rows += bottleneck(width, before, after, projected=True)
        for _ in range(count - 1):
            rows += bottleneck(width, after, after, projected=False)
    return rows


SHAPES = {
    "mnist_net": (
        ("mnist_net", {}, (1, 28, 28)),
        [(5, 1, 32, 24), (5, 1, 64, 8), (1024, 1024), (1024, 10)],
        (25 * 32 + 32) + (25 * 32 * 64 + 64) + (1024 * 1024 + 1024) + (1024 * 10 + 10),
    ),
    "plain_net 3": (
        ("plain_net", {"layers": 3, "num_classes": 100}, (3, 32, 32)),
        [(3, 2, 32, 16), (3, 2, 64, 8), (4096, 100)],
        864 + 18432 + 2 * 96 + 409700,
    ),
    "plain_net 4": (
        ("plain_net", {"layers": 4, "num_classes": 100}, (3, 32, 32)),
        [(3, 2, 32, 16), (3, 2, 64, 8), (3, 2, 128, 4), (2048, 100)],
        864 + 18432 + 73728 + 2 * 224 + 204900,
    ),
    "plain_net 5": (
        ("plain_net", {"layers": 5, "num_classes": 100}, (3, 32, 32)),
        [(3, 2, 32, 16), (3, 2, 64, 8), (3, 2, 128, 4), (3, 2, 256, 2), (1024, 100)],
        491396,
    ),
    "plain_net 9": (
        ("plain_net", {"layers": 9, "num_classes": 100}, (3, 32, 32)),
        [
            (3, 2, 32, 16),
            (3, 1, 32, 16),
            (3, 2, 64, 8),
            (3, 1, 64, 8),
            (3, 2, 128, 4),
            (3, 1, 128, 4),
            (3, 2, 256, 2),
            (3, 1, 256, 2),
            (1024, 100),
        ],
        491396 + 9 * (32**2 + 64**2 + 128**2 + 256**2) + 2 * 480,
    ),
    "plain_net 13": (
        ("plain_net", {"layers": 13, "num_classes": 100}, (3, 32, 32)),
        [
            (3, 2, 32, 16),
            (3, 1, 32, 16),
            (3, 1, 32, 16),
            (3, 2, 64, 8),
            (3, 1, 64, 8),
            (3, 1, 64, 8),
            (3, 2, 128, 4),
            (3, 1, 128, 4),
            (3, 1, 128, 4),
            (3, 2, 256, 2),
            (3, 1, 256, 2),
            (3, 1, 256, 2),
            (1024, 100),
        ],
        491396 + 18 * (32**2 + 64**2 + 128**2 + 256**2) + 4 * 480,
    ),
    "resnet11": (
        ("resnet11", {}, (3, 32, 32)),
        [
            (3, 1, 64, 32),
            (1, 1, 128, 16),
            (3, 1, 128, 16),
            (3, 1, 128, 16),
            (1, 2, 256, 8),
            (3, 1, 256, 16),
            (3, 2, 256, 8),
            (1, 1, 512, 8),
            (3, 1, 512, 8),
            (3, 1, 512, 8),
            (3, 1, 512, 8),
            (3, 2, 512, 4),
            (8192, 1024),
            (1024, 10),
        ],
        17945674,
    ),
    "resnet18, 3x3": (
        ("resnet18", {}, (3, 32, 32)),
        [
            (3, 1, 64, 32),
            *2 * basic(64, 32, 1, projected=False),
            *basic(128, 16, 2, projected=True),
            *basic(128, 16, 1, projected=False),
            *basic(256, 8, 2, projected=True),
            *basic(256, 8, 1, projected=False),
            *basic(512, 4, 2, projected=True),
            *basic(512, 4, 1, projected=False),
            (512, 10),
        ],
        11173962,
    ),
    # The parameters of torchvision's resnet18 and resnet50, as its documentation gives them.
    "resnet18, 7x7": (
        ("resnet18", {"stem": "7x7", "num_classes": 1000}, (3, 128, 128)),
        [
            (7, 2, 64, 64),
            *2 * basic(64, 32, 1, projected=False),
            *basic(128, 16, 2, projected=True),
            *basic(128, 16, 1, projected=False),
            *basic(256, 8, 2, projected=True),
            *basic(256, 8, 1, projected=False),
            *basic(512, 4, 2, projected=True),
            *basic(512, 4, 1, projected=False),
            (512, 1000),
        ],
        11689512,
    ),
    "resnet50, 3x3": (
        ("resnet50", {"num_classes": 100}, (3, 32, 32)),
        [(3, 1, 64, 32), *bottlenecks((32, 32, 16, 8, 4)), (2048, 100)],
        23520842 + 90 * 2049,
    ),
    "resnet50, 7x7": (
        ("resnet50", {"stem": "7x7", "num_classes": 1000}, (3, 128, 128)),
        [(7, 2, 64, 64), *bottlenecks((32, 32, 16, 8, 4)), (2048, 1000)],
        25557032,
    ),
}


@pytest.mark.parametrize("activation", ["if", "relu"])
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_layers_strides_and_parameters_are_those_of_the_table(case, activation):
    (name, options, image), layers, parameters = case
    with torch.device("meta"):
        network = models.build(name, activation=activation, steps=2, **options)
    assert traced(network, *image) == layers
    assert sum(p.numel() for p in network.parameters()) == parameters


# Which networks have a width, and its default.
WIDTHS = {"plain_net": 32, "resnet11": 64, "resnet18": 64, "resnet50": 64}


def scaled(rows: list[tuple], narrower: int) -> list[tuple]:
    """The rows of a network so many times narrower: channels, and features of linear layers but hidden units."""
    convolutions = [(*row[:2], row[2] // narrower, row[3]) for row in rows if len(row) == 4]
    first, *rest = (row for row in rows if len(row) == 2)
    return [*convolutions, (first[0] // narrower, first[1]), *rest]


@pytest.mark.parametrize("activation", ["if", "relu"])
@pytest.mark.parametrize("name", WIDTHS)
def test_channels_scale_with_the_width_and_nothing_else_does(name, activation):
    with torch.device("meta"):
        wide = models.build(name, activation=activation, steps=2)
        narrow = models.build(name, activation=activation, steps=2, width=WIDTHS[name] // 8)
    rows = traced(wide, 3, 32, 32)
    assert traced(narrow, 3, 32, 32) == scaled(rows, 8)
    assert rows[0][2] == WIDTHS[name]
    assert list(narrow.state_dict()) == list(wide.state_dict())


@pytest.mark.parametrize("name", WIDTHS)
def test_the_default_width_is_the_papers(name):
    with torch.device("meta"):
        default, named = models.build(name), models.build(name, width=WIDTHS[name])
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (default, named)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", [name for name in models.names() if models.takes(name, "width")])
@pytest.mark.parametrize("width", [1, 3])
def test_networks_of_any_width_run(name, width):
    size = {"image_size": 16} if models.takes(name, "image_size") else {}
    network = models.build(name, width=width, num_classes=4, steps=2, **size)
    assert network(torch.rand(3, 3, 16, 16)).shape == (3, 4)
