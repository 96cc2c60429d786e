"""The paper's networks, spiking and as their ANN twins, built on the fused layers (MATH.md section 9).

:func:`build` makes them by name. Each is a function of its own too: :func:`mnist_net`, :func:`plain_net`,
:func:`resnet11`, :func:`resnet18`, :func:`resnet50`, with ``activation="if"``, ``"lif"`` or, for the twin, ``"relu"``:
the same modules without a time axis, under the same parameter names. They take images [B, C, H, W] and give logits
[B, classes]; the part before the first neuron is computed once, not for every step. :func:`synchronize` makes their
batch statistics those of several processes. :func:`ms_resnet18`, :func:`ms_resnet50`, :func:`sew_resnet18` and
:func:`sew_resnet50` are other papers' residual networks, with other shortcuts, to compare with.

:class:`DigitsNet` is smaller, and takes ``neuron``, a function that makes a spiking layer, so that the same weights run
through another implementation of the same dynamics.
"""

import sys

from snnfast.models import batch_norm
from snnfast.models.activations import ACTIVATIONS, Activation, BatchNormReLU, ReLU, ResidualIF, ResidualLIF
from snnfast.models.batch_norm import BatchNorm2d, synchronize
from snnfast.models.convolutional import FeedForwardNet, mnist_net, plain_net
from snnfast.models.digits import DigitsNet, NeuronFactory
from snnfast.models.membrane import MembraneBlock, MembraneResNet, ms_resnet18, ms_resnet50
from snnfast.models.network import Network, SummedLinear
from snnfast.models.registry import build, digits, for_images, names, takes
from snnfast.models.residual import ResidualBlock, ResNet, resnet11, resnet18, resnet50
from snnfast.models.spike_element_wise import SpikeElementWiseBlock, SpikeElementWiseResNet, sew_resnet18, sew_resnet50

# Where it was in version 0.1, for networks that it pickled whole, as in snnfast/_formerly.py.
sys.modules.setdefault("snnfast.models.normalization", batch_norm)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm2d",
    "BatchNormReLU",
    "DigitsNet",
    "FeedForwardNet",
    "MembraneBlock",
    "MembraneResNet",
    "Network",
    "NeuronFactory",
    "ReLU",
    "ResNet",
    "ResidualBlock",
    "ResidualIF",
    "ResidualLIF",
    "SpikeElementWiseBlock",
    "SpikeElementWiseResNet",
    "SummedLinear",
    "build",
    "digits",
    "for_images",
    "mnist_net",
    "ms_resnet18",
    "ms_resnet50",
    "names",
    "plain_net",
    "resnet11",
    "resnet18",
    "resnet50",
    "sew_resnet18",
    "sew_resnet50",
    "synchronize",
    "takes",
]
