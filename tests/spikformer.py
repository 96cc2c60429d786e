"""A spiking transformer as its field writes it: every layer by itself, time and batch folded for whatever has none.

The patch embedding is two convolutions, each with batch norm, neuron and max-pool, and a third as position encoding.
A block is attention without softmax (queries, keys, values and a projection, each with batch norm and neuron) and two
layers behind it, each added to what came in. "conv" has the tokens last, [T, B, C, N], and 1x1 convolutions; "linear"
has the channels last and turns them around for each batch norm.
"""

from __future__ import annotations

from torch import Tensor, nn

import snnfast as sf


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int, tokens_last: bool, **options) -> None:
        super().__init__()
        self.tokens_last = tokens_last
        for i, (before, after) in enumerate(((3, channels // 2), (channels // 2, channels))):
            setattr(self, f"conv{i}", nn.Conv2d(before, after, 3, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
            setattr(self, f"lif{i}", sf.LIF(tau=2.0, **options))
            setattr(self, f"pool{i}", nn.MaxPool2d(3, stride=2, padding=1))
        self.position_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.position_bn = nn.BatchNorm2d(channels)
        self.position_lif = sf.LIF(tau=2.0, **options)

    def forward(self, x: Tensor) -> Tensor:
        T, B, _C, H, W = x.shape
        x = self.conv0(x.flatten(0, 1))
        x = self.bn0(x).reshape(T, B, -1, H, W).contiguous()
        x = self.pool0(self.lif0(x).flatten(0, 1).contiguous())
        x = self.conv1(x)
        x = self.bn1(x).reshape(T, B, -1, H // 2, W // 2).contiguous()
        x = self.pool1(self.lif1(x).flatten(0, 1).contiguous())
        embedded = x.reshape(T, B, -1, H // 4, W // 4).contiguous()
        x = self.position_conv(x)
        x = self.position_bn(x).reshape(T, B, -1, H // 4, W // 4).contiguous()
        x = self.position_lif(x) + embedded
        x = x.flatten(-2)
        return x if self.tokens_last else x.transpose(-1, -2)


class Attention(nn.Module):
    """Four projections, each with batch norm and neuron, and the neuron between attention and the last of them."""

    def __init__(self, channels: int, heads: int, **options) -> None:
        super().__init__()
        self.heads, self.scale = heads, 0.25
        for name in ("q", "k", "v", "proj"):
            setattr(self, f"{name}_{self.kind}", self.projection(channels))
            setattr(self, f"{name}_bn", nn.BatchNorm1d(channels))
            setattr(self, f"{name}_lif", sf.LIF(tau=2.0, **options))
        self.attention_lif = sf.LIF(tau=2.0, threshold=0.5)


class ConvAttention(Attention):
    kind = "conv"

    def projection(self, channels: int) -> nn.Module:
        return nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        T, B, C, N = x.shape
        folded = x.flatten(0, 1)
        q = self.q_lif(self.q_bn(self.q_conv(folded)).reshape(T, B, C, N).contiguous())
        q = q.transpose(-1, -2).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
        k = self.k_lif(self.k_bn(self.k_conv(folded)).reshape(T, B, C, N).contiguous())
        k = k.transpose(-1, -2).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
        v = self.v_lif(self.v_bn(self.v_conv(folded)).reshape(T, B, C, N).contiguous())
        v = v.transpose(-1, -2).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
        x = (q @ k.transpose(-2, -1)) @ v * self.scale
        x = self.attention_lif(x.transpose(3, 4).reshape(T, B, C, N).contiguous())
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, N).contiguous()
        return self.proj_lif(x)


class LinearAttention(Attention):
    kind = "linear"

    def projection(self, channels: int) -> nn.Module:
        return nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        T, B, N, C = x.shape
        folded = x.flatten(0, 1)
        q = self.q_linear(folded)
        q = self.q_bn(q.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
        q = self.q_lif(q).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
        k = self.k_linear(folded)
        k = self.k_bn(k.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
        k = self.k_lif(k).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
        v = self.v_linear(folded)
        v = self.v_bn(v.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
        v = self.v_lif(v).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
        x = (q @ k.transpose(-2, -1)) @ v * self.scale
        x = self.attention_lif(x.transpose(2, 3).reshape(T, B, N, C).contiguous())
        x = self.proj_bn(self.proj_linear(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C)
        return self.proj_lif(x)


class ConvMLP(nn.Module):
    def __init__(self, channels: int, hidden: int, **options) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1_conv, self.fc2_conv = nn.Conv1d(channels, hidden, 1), nn.Conv1d(hidden, channels, 1)
        self.fc1_bn, self.fc2_bn = nn.BatchNorm1d(hidden), nn.BatchNorm1d(channels)
        self.fc1_lif, self.fc2_lif = sf.LIF(tau=2.0, **options), sf.LIF(tau=2.0, **options)

    def forward(self, x: Tensor) -> Tensor:
        T, B, C, N = x.shape
        x = self.fc1_conv(x.flatten(0, 1))
        x = self.fc1_lif(self.fc1_bn(x).reshape(T, B, self.hidden, N).contiguous())
        x = self.fc2_conv(x.flatten(0, 1))
        return self.fc2_lif(self.fc2_bn(x).reshape(T, B, C, N).contiguous())


class LinearMLP(nn.Module):
    def __init__(self, channels: int, hidden: int, **options) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1_linear, self.fc2_linear = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.fc1_bn, self.fc2_bn = nn.BatchNorm1d(hidden), nn.BatchNorm1d(channels)
        self.fc1_lif, self.fc2_lif = sf.LIF(tau=2.0, **options), sf.LIF(tau=2.0, **options)

    def forward(self, x: Tensor) -> Tensor:
        T, B, N, C = x.shape
        x = self.fc1_linear(x.flatten(0, 1))
        x = self.fc1_bn(x.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, self.hidden).contiguous()
        x = self.fc2_linear(self.fc1_lif(x).flatten(0, 1))
        x = self.fc2_bn(x.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, C).contiguous()
        return self.fc2_lif(x)


class Block(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Spikformer(nn.Module):
    def __init__(self, kind: str, channels: int = 8, heads: int = 2, depth: int = 2, **options) -> None:
        super().__init__()
        self.tokens_last = kind == "conv"
        attention, mlp = (ConvAttention, ConvMLP) if self.tokens_last else (LinearAttention, LinearMLP)
        self.embedding = PatchEmbedding(channels, self.tokens_last, **options)
        self.blocks = nn.ModuleList(
            Block(attention(channels, heads, **options), mlp(channels, 2 * channels, **options)) for _ in range(depth)
        )
        self.head = nn.Linear(channels, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(3 if self.tokens_last else 2)).mean(0)
