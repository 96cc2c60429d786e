"""The paper's networks, spiking and as their ANN twins, built on the fused layers (MATH.md section 9).

:func:`build` makes them by name. Each is a function of its own too: :func:`mnist_net`, :func:`plain_net`,
:func:`resnet11`, :func:`resnet18`, :func:`resnet50`, with ``activation="if"``, ``"lif"`` or, for the twin, ``"relu"``:
the same modules without a time axis, under the same parameter names. They take images [B, C, H, W] and give logits
[B, classes]; the part before the first neuron is computed once, not for every step. :func:`synchronize` makes their
batch statistics those of several processes.

:class:`DigitsNet` is smaller, and takes ``neuron``, a function that makes a spiking layer, so that the same weights run
through another implementation of the same dynamics.
"""

import sys

from snnfast.models import batch_norm
from snnfast.models.activations import ACTIVATIONS, Activation, BatchNormReLU, ReLU, ResidualIF, ResidualLIF
from snnfast.models.batch_norm import BatchNorm2d, synchronize
from snnfast.models.convolutional import FeedForwardNet, mnist_net, plain_net
from snnfast.models.digits import DigitsNet, NeuronFactory
from snnfast.models.network import Network, SummedLinear
from snnfast.models.registry import build, digits, for_images, names, takes
from snnfast.models.residual import ResidualBlock, ResNet, resnet11, resnet18, resnet50

# Where it was in version 0.1, for networks that it pickled whole, as in snnfast/_formerly.py.
sys.modules.setdefault("snnfast.models.normalization", batch_norm)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm2d",
    "BatchNormReLU",
    "DigitsNet",
    "FeedForwardNet",
    "Network",
    "NeuronFactory",
    "ReLU",
    "ResNet",
    "ResidualBlock",
    "ResidualIF",
    "ResidualLIF",
    "SummedLinear",
    "build",
    "digits",
    "for_images",
    "mnist_net",
    "names",
    "plain_net",
    "resnet11",
    "resnet18",
    "resnet50",
    "synchronize",
    "takes",
]
