"""Building blocks of the networks.

No ReLU works in place: ``Classifier.features`` returns stage outputs and attacks hook layers, and these
tensors must not change afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    padding: int | None = None,
    bias: bool = False,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless ``act`` is None, an activation.

    ``padding`` defaults to half the kernel, which keeps the size at stride 1. A ``bias`` before batch
    normalisation changes only the parameter count; some nets have it to match published counts.
    """
    half = kernel // 2 if padding is None else padding
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, half, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
    ]
    if act is not None:
        layers.append(act())
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """``act(branch(x) + shortcut(x))``; ``act=None`` leaves the sum alone."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, act: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the sum of branch and shortcut."""
        total: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return total


class PadShortcut(nn.Module):
    """He et al.'s option A: every second pixel, zeros in the new channels, no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.missing = outputs - inputs
        self.stride = stride

    def extra_repr(self) -> str:
        """Show the settings in the printed net, which is what a checkpoint's fingerprint sees."""
        return f"missing={self.missing}, stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + missing, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


def pool_head(width: int, num_classes: int) -> nn.Sequential:
    """Average over all pixels, then one linear layer: a head for any image size."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def he_init(stages: list[nn.Module]) -> None:
    """Draw convolution weights as He et al. 2015 (arXiv:1502.01852, section 2.2), fan-out form.

    The ResNet papers that use it train the nets below from it; the others keep PyTorch's default,
    as their public code does.
    """
    for module in nn.ModuleList(stages).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
