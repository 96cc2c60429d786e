"""ResNet18's seventeen spiking layers, narrow, for tests that need depth: MATH.md section 9."""

from __future__ import annotations

from torch import Tensor, nn

import snnfast as sf


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = sf.OverTime(nn.Conv2d(before, after, 3, stride, 1, bias=False))
        self.neuron1 = sf.BatchNormIF(after)
        self.conv2 = sf.OverTime(nn.Conv2d(after, after, 3, 1, 1, bias=False))
        self.neuron2 = sf.BatchNormIF(after)
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = sf.OverTime(
                nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            )

    def forward(self, spikes: Tensor) -> Tensor:
        return self.neuron2(self.conv2(self.neuron1(self.conv1(spikes))), residual=self.shortcut(spikes))


class SmallResNet18(nn.Module):
    """Images [B, 3, H, W], held for ``steps``, to logits [B, 10]; the four stages have 1, 2, 4, 8 times ``width``."""

    def __init__(self, width: int = 4, steps: int = 10) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.neuron = sf.BatchNormIF(width)
        widths = [width * 2**stage for stage in range(4) for _ in range(2)]
        self.blocks = nn.Sequential(
            *(
                _Block(before, after, stride=2 if before != after else 1)
                for before, after in zip([width, *widths], widths, strict=False)
            )
        )
        self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.blocks(self.neuron(self.stem(images), steps=self.steps))
        return self.classifier(spikes.mean((-2, -1)).sum(0))
