"""A small ResNet18 written as torchvision's is, over time: the network that users bring."""

from __future__ import annotations

import torch
from torch import nn

import snnfast as sf


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> sf.OverTime:
    return sf.OverTime(nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False))


def norm(channels: int) -> sf.OverTime:
    return sf.OverTime(nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = norm(outputs)
        self.sn1 = sf.IF()
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = norm(outputs)
        self.sn2 = sf.IF()
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.sn1(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.sn2(out)

        return out


class ResNet18(nn.Module):
    """[T, B, 3, H, W] to logits [B, classes]."""

    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.inplanes = width
        self.conv1 = conv(3, width, 3)
        self.bn1 = norm(width)
        self.sn1 = sf.IF()
        self.maxpool = sf.OverTime(nn.MaxPool2d(3, 2, 1))
        self.layer1 = self._make_layer(width, 1)
        self.layer2 = self._make_layer(2 * width, 2)
        self.layer3 = self._make_layer(4 * width, 2)
        self.layer4 = self._make_layer(8 * width, 2)
        self.avgpool = sf.OverTime(nn.AdaptiveAvgPool2d((1, 1)))
        self.fc = sf.OverTime(nn.Linear(8 * width, classes))
        self.readout = sf.Readout("mean")

    def _make_layer(self, planes: int, stride: int) -> nn.Sequential:
        downsample = None
        if stride != 1 or self.inplanes != planes:
            downsample = nn.Sequential(conv(self.inplanes, planes, 1, stride), norm(planes))
        blocks = [BasicBlock(self.inplanes, planes, stride, downsample), BasicBlock(planes, planes, 1, None)]
        self.inplanes = planes
        return nn.Sequential(*blocks)

    def _forward_impl(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.sn1(x)
        x = self.maxpool(x)

        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)

        x = self.avgpool(x)
        x = torch.flatten(x, 2)
        x = self.fc(x)
        return self.readout(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_impl(x)
