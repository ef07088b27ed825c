"""MobileNetV2 and ShuffleNetV2, the usual students on CIFAR-100.

Both follow weiaicunzai/pytorch-cifar100, which the Nasty and Adversarial Sparse Teacher code uses,
biases before batch normalisation included, so that parameter counts agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.models.base import Body, Shape
from kdsec.models.layers import Residual, conv_bn, pool_head

# Width, blocks and stride of each group of inverted residuals. Table 2 of the paper is for 224x224;
# here three groups halve a 32x32 image instead of four and the stem keeps its size.
_MOBILE_GROUPS = (
    (24, 2, 2),
    (32, 3, 2),
    (64, 4, 2),
    (96, 3, 1),
    (160, 3, 1),
    (320, 1, 1),
)
_SHUFFLE_GROUPS = ((116, 4), (232, 8), (464, 4))  # width and blocks, the first of which halves


def mobilenetv2(num_classes: int, shape: Shape) -> Body:
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2) for small images.

    2,254,090 parameters at ten classes. The public code's stem is a 1x1 convolution with padding 1,
    which turns 32x32 into 34x34; kept, because published results come from it. Its classifier is a
    1x1 convolution on the pooled features, which is the linear layer used here.
    """
    stem = conv_bn(shape[0], 32, kernel=1, padding=1, bias=True, act=nn.ReLU6)
    blocks: list[nn.Module] = [_inverted_residual(32, 16, 1, expand=1)]
    stages: list[nn.Module] = []
    inputs = 16
    for width, count, stride in _MOBILE_GROUPS:
        if stride == 2:  # a new resolution starts a new stage
            stages.append(nn.Sequential(*blocks))
            blocks = []
        for step in [stride] + [1] * (count - 1):
            blocks.append(_inverted_residual(inputs, width, step, expand=6))
            inputs = width
    last = conv_bn(inputs, 1280, kernel=1, bias=True, act=nn.ReLU6)
    stages.append(nn.Sequential(*blocks, last))
    stages[0] = nn.Sequential(stem, stages[0])
    return stages, pool_head(1280, num_classes)


def shufflenetv2(num_classes: int, shape: Shape) -> Body:
    """ShuffleNetV2 1x (Ma et al. 2018, arXiv:1807.11164, table 5) for small images.

    1,268,646 parameters at ten classes. The 3x3 stem does not stride and the max-pooling is left
    out.
    """
    stages: list[nn.Module] = []
    inputs = 24
    for width, count in _SHUFFLE_GROUPS:
        blocks = [ShuffleUnit(inputs, width, stride=2)]
        blocks += [ShuffleUnit(width, width, stride=1) for _ in range(count - 1)]
        stages.append(nn.Sequential(*blocks))
        inputs = width
    stem = conv_bn(shape[0], 24, bias=True, act=None)
    stages[0] = nn.Sequential(stem, stages[0])
    stages[-1] = nn.Sequential(stages[-1], conv_bn(inputs, 1024, kernel=1, bias=True))
    return stages, pool_head(1024, num_classes)


class ShuffleUnit(nn.Module):
    """Figure 3c and 3d of the ShuffleNetV2 paper.

    At stride 1 half of the channels pass untouched and the other half go through the branch. At
    stride 2 all of them go through both sides. Then the two halves are interleaved.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.splits = stride == 1
        half = outputs // 2
        entering = half if self.splits else inputs
        self.branch = nn.Sequential(
            conv_bn(entering, entering, kernel=1, bias=True),
            conv_bn(entering, entering, stride=stride, groups=entering, bias=True, act=None),
            conv_bn(entering, half, kernel=1, bias=True),
        )
        self.shortcut: nn.Module = nn.Identity()
        if not self.splits:
            self.shortcut = nn.Sequential(
                conv_bn(inputs, inputs, stride=stride, groups=inputs, bias=True, act=None),
                conv_bn(inputs, half, kernel=1, bias=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        kept, worked = x.chunk(2, dim=1) if self.splits else (x, x)
        both = torch.cat([self.shortcut(kept), self.branch(worked)], dim=1)
        return F.channel_shuffle(both, 2)  # a0 a1 ... b0 b1 ... becomes a0 b0 a1 b1 ...


def _inverted_residual(inputs: int, outputs: int, stride: int, expand: int) -> nn.Module:
    middle = inputs * expand
    branch = nn.Sequential(
        conv_bn(inputs, middle, kernel=1, bias=True, act=nn.ReLU6),
        conv_bn(middle, middle, stride=stride, groups=middle, bias=True, act=nn.ReLU6),
        conv_bn(middle, outputs, kernel=1, bias=True, act=None),
    )
    return Residual(branch, nn.Identity()) if inputs == outputs and stride == 1 else branch
