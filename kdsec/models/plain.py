"""Nets without shortcuts: three for 8x8 digits, the plain CNN of the Nasty papers, and VGG."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kdsec.models.base import Body, Shape
from kdsec.models.layers import conv_bn, pool_head

VGG_GROUPS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # convolutions per group, columns A and D
VGG_WIDTHS = (64, 128, 256, 512, 512)


def digits_cnn(num_classes: int, shape: Shape, *, widths: tuple[int, int, int]) -> Body:
    """Three 3x3 convolutions with one max-pooling after the second, and one linear layer.

    Made for scikit-learn's 1x8x8 digits. Teacher and student differ in ``widths`` only, so their
    three stages have the same height and width and attention maps can be compared directly.
    """
    channels, height, width = shape
    first, second, third = widths
    stages: list[nn.Module] = [
        conv_bn(channels, first),
        nn.Sequential(conv_bn(first, second), nn.MaxPool2d(2)),
        conv_bn(second, third),
    ]
    pixels = (height // 2) * (width // 2)
    return stages, nn.Sequential(nn.Flatten(), nn.Linear(third * pixels, num_classes))


def digits_mlp(num_classes: int, shape: Shape) -> Body:
    """Two hidden layers of 64 on the flattened image: a student that ignores geometry."""
    channels, height, width = shape
    stages: list[nn.Module] = [
        nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
    ]
    return stages, nn.Linear(64, num_classes)


def cnn(num_classes: int, shape: Shape, *, widths: Sequence[int] = (32, 64, 128)) -> Body:
    """The plain CNN of the Nasty and Adversarial Sparse Teacher papers, ``Net`` in their code.

    Three times convolution 3x3, BN, max-pooling, ReLU (of ``widths``), then a hidden layer as wide as the
    last. 357,514 parameters for ten classes of 32x32; the hidden layer's input follows the image size.
    """
    channels, height, width = shape
    stages: list[nn.Module] = []
    for inputs, outputs in zip((channels, *widths), widths, strict=False):
        convolution = conv_bn(inputs, outputs, bias=True, act=None)
        stages.append(nn.Sequential(convolution, nn.MaxPool2d(2), nn.ReLU()))
    head = nn.Sequential(
        nn.Flatten(),
        nn.Linear(widths[-1] * (height // 8) * (width // 8), widths[-1]),
        nn.BatchNorm1d(widths[-1]),
        nn.ReLU(),
        nn.Linear(widths[-1], num_classes),
    )
    return stages, head


def vgg(num_classes: int, shape: Shape, *, depth: int) -> Body:
    """VGG-11 or -16 (Simonyan and Zisserman 2015, arXiv:1409.1556, table 1) for small images.

    With batch normalisation and one linear layer instead of three. Counts match
    kuangliu/pytorch-cifar (14,728,266 for VGG-16 at ten classes), biases in front of batch
    normalisation included.
    """
    stages: list[nn.Module] = []
    inputs = shape[0]
    for width, count in zip(VGG_WIDTHS, VGG_GROUPS[depth], strict=True):
        layers: list[nn.Module] = []
        for _ in range(count):
            layers.append(conv_bn(inputs, width, bias=True))
            inputs = width
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    return stages, pool_head(inputs, num_classes)
