"""Networks as users write them, before they are spiking."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """torchvision's: one ReLU called twice, in place, the shortcut added in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(width, width), BasicBlock(width, 2 * width, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.avgpool(self.layer1(x))
        return self.fc(torch.flatten(x, 1))


class VGG(nn.Module):
    """Sequential parts, max pooling, dropout between linear layers, a size that is read of the images."""

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 4), (4, 8)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *[nn.BatchNorm2d(outputs)] * batch_norm]
            layers += [nn.ReLU(True), nn.MaxPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        return self.classifier(self.features(x).view(batch, -1))


class MLP(nn.Module):
    """The first example of many courses: functions for activations, log_softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(192, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], -1)
        x = F.relu(self.fc1(x))
        x = self.fc2(x).relu()
        return F.log_softmax(self.fc3(x), dim=1)


class Plain(nn.Module):
    """``snnfast.models.plain_net(layers=4, image_size=8)`` in torch alone, with the names that it has there."""

    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 4 * width)
        pairs = list(pairwise(channels))
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1, bias=False) for i, o in pairs)
        self.activations = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.activations, strict=True):
            x = torch.relu(norm(layer(x)))
        return self.classifier(x.flatten(1))
