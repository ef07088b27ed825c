"""Residual nets with the activation after the sum: CIFAR ResNets, ResNet-18/34/50, ResNeXt-29."""

from __future__ import annotations

from torch import nn

from kdsec.models.base import Body, Shape
from kdsec.models.layers import PadShortcut, Residual, conv_bn, he_init, pool_head


def cifar_resnet(num_classes: int, shape: Shape, *, depth: int) -> Body:
    """The CIFAR ResNet of He et al. 2016 (arXiv:1512.03385, section 4.2): ``depth`` = 6n + 2.

    Widths 16, 32, 64 with n basic blocks each. Shortcuts are **option A**, as in that section:
    strided identity plus zero channels, no parameters (0.27 M for depth 20, their table 6). Nets
    called ``resnet20`` in distillation code often use 1x1 projections instead and count about 2,750
    more.
    """
    stages: list[nn.Module] = [conv_bn(shape[0], 16)]
    inputs = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        blocks: list[nn.Module] = []
        for step in [stride] + [1] * ((depth - 2) // 6 - 1):
            same = inputs == width and step == 1
            shortcut = nn.Identity() if same else PadShortcut(inputs, width, step)
            blocks.append(Residual(_basic(inputs, width, step), shortcut, nn.ReLU()))
            inputs = width
        stages.append(nn.Sequential(*blocks))
    he_init(stages)
    return _stem_into_first(stages), pool_head(64, num_classes)


def resnet(num_classes: int, shape: Shape, *, blocks: tuple[int, ...], bottleneck: bool = False) -> Body:
    """ResNet-18/34/50 (He et al. 2016, table 1) for small images: a 3x3 stem, no max-pooling.

    Projection shortcuts (option B). Counts match kuangliu/pytorch-cifar, which the Nasty Teacher and
    Adversarial Sparse Teacher code uses: 11,173,962 for ResNet-18 and 23,520,842 for ResNet-50 at ten
    classes.
    """
    stem = conv_bn(shape[0], 64)
    stages, width = residual_stages(64, blocks, bottleneck=bottleneck)
    return _stem_into_first([stem, *stages]), pool_head(width, num_classes)


def residual_stages(inputs: int, blocks: tuple[int, ...], *, bottleneck: bool) -> tuple[list[nn.Module], int]:
    """The stages of ResNet-18 and deeper behind a stem of ``inputs`` channels, and how wide they end."""
    stages: list[nn.Module] = []
    for index, count in enumerate(blocks):
        middle = 64 * 2**index
        width = middle * 4 if bottleneck else middle
        stage: list[nn.Module] = []
        for step in [1 if index == 0 else 2] + [1] * (count - 1):
            branch = _bottleneck(inputs, middle, width, step) if bottleneck else _basic(inputs, width, step)
            stage.append(Residual(branch, _projection(inputs, width, step), nn.ReLU()))
            inputs = width
        stages.append(nn.Sequential(*stage))
    return stages, inputs


def resnext29(num_classes: int, shape: Shape) -> Body:
    """ResNeXt-29, 8x64d (Xie et al. 2017, arXiv:1611.05431, section 5.3 and table 7).

    Three stages of three bottlenecks; the grouped 3x3 has 8 groups of 64, 128, 256 channels and the
    outputs are 256, 512, 1024 wide. Counts match prlz77/ResNeXt.pytorch (34,426,698 at ten
    classes).
    """
    stages: list[nn.Module] = [conv_bn(shape[0], 64)]
    inputs = 64
    for index in range(3):
        middle, width = 512 * 2**index, 256 * 2**index
        stage: list[nn.Module] = []
        for step in (1 if index == 0 else 2, 1, 1):
            branch = _bottleneck(inputs, middle, width, step, groups=8)
            stage.append(Residual(branch, _projection(inputs, width, step), nn.ReLU()))
            inputs = width
        stages.append(nn.Sequential(*stage))
    return _stem_into_first(stages), pool_head(inputs, num_classes)


def _basic(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(inputs, outputs, stride=stride),
        conv_bn(outputs, outputs, act=None),
    )


def _bottleneck(inputs: int, middle: int, outputs: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(inputs, middle, kernel=1),
        conv_bn(middle, middle, stride=stride, groups=groups),
        conv_bn(middle, outputs, kernel=1, act=None),
    )


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return conv_bn(inputs, outputs, kernel=1, stride=stride, act=None)


def _stem_into_first(stages: list[nn.Module]) -> list[nn.Module]:
    """Count the stem as part of the first stage: attention transfer matches three or four."""
    stem, first, *rest = stages
    return [nn.Sequential(stem, first), *rest]
