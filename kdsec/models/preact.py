"""Residual nets with the activation before the convolution: ResNetC and wide ResNets."""

from __future__ import annotations

from torch import Tensor, nn

from kdsec.models.base import Body, Shape
from kdsec.models.layers import he_init, pool_head


def resnetc(num_classes: int, shape: Shape, *, depth: int) -> Body:
    """The ResNetC-20 and -32 of the Nasty, Stingy and Adversarial Sparse Teacher papers.

    Pre-activation basic blocks (He et al. 2016b, arXiv:1603.05027, figure 4e), widths 16, 32, 64,
    ``depth`` = 6n + 2. A 1x1 convolution without batch normalisation carries the block's *raw*
    input where the width changes. Counts match ``PreResNet`` in VITA-Group/Nasty-Teacher: 272,282
    and 466,714 at ten classes.
    """
    return _preactivation(num_classes, shape, (depth - 2) // 6, 1, activated_shortcut=False)


def wide_resnet(num_classes: int, shape: Shape, *, depth: int, widen: int) -> Body:
    """WRN-depth-widen (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1), without dropout.

    ``depth`` = 6n + 4, widths 16k, 32k, 64k. Where the width changes, a 1x1 convolution carries the
    *activated* input, as in their code. 691,674 parameters for WRN-16-2 and 2,243,546 for WRN-40-2
    at ten classes (2.2 M in the paper).
    """
    return _preactivation(num_classes, shape, (depth - 4) // 6, widen, activated_shortcut=True)


class PreActivation(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut.

    Args:
        inputs, outputs, stride: of the block as a whole.
        activated_shortcut: a projecting shortcut starts after the first BN-ReLU instead of before
            it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activated_shortcut: bool) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        projects = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projects else nn.Identity()
        self.activated_shortcut = activated_shortcut and projects

    def extra_repr(self) -> str:
        """Show the setting in the printed net, which is what a checkpoint's fingerprint sees."""
        return f"activated_shortcut={self.activated_shortcut}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = self.activate(x)
        carried = active if self.activated_shortcut else x
        total: Tensor = self.branch(active) + self.shortcut(carried)
        return total


def _preactivation(num_classes: int, shape: Shape, count: int, widen: int, activated_shortcut: bool) -> Body:
    stem = nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)
    stages: list[nn.Module] = []
    inputs = 16
    for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        blocks: list[nn.Module] = []
        for step in [stride] + [1] * (count - 1):
            blocks.append(PreActivation(inputs, width, step, activated_shortcut))
            inputs = width
        stages.append(nn.Sequential(*blocks))
    # The last sum still needs its activation: in the last stage, so that every head only pools.
    stages[0] = nn.Sequential(stem, stages[0])
    stages[-1] = nn.Sequential(stages[-1], nn.BatchNorm2d(inputs), nn.ReLU())
    he_init(stages)
    return stages, pool_head(inputs, num_classes)
