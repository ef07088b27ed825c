"""Purifiers without training: fewer grey levels, a median, a blur, JPEG, noise.

Each maps images (N, C, H, W) in [0, 1] to images of the same shape. All are broken by adaptive attacks: input
transformations by Athalye et al. 2018 (arXiv 1802.00420), feature squeezing by He et al. 2017 (1706.04701).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.entry import checked
from kdsec.errors import KdsecError

# ITU-T T.81 (the JPEG standard), table K.1: step size of each frequency of an 8x8 block at quality 50.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@checked
class BitDepth(nn.Module):
    """Feature squeezing, the first half (Xu et al. 2018, arXiv 1704.01155): round to ``2 ** bits`` levels.

    The gradient of a rounding is zero everywhere: attack it through ``BPDA``.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise KdsecError(f"bits={bits}; choose 1 to 8, which changes nothing")
        self.bits = bits

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def forward(self, images: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        return (images * steps).round() / steps


@checked
class Median(nn.Module):
    """Feature squeezing, the second half: each pixel becomes the lower median of a square around it."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size < 1:
            raise KdsecError(f"size={size}; choose 1 or more pixels, 2 and 3 are common")
        self.size = size

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, images: Tensor) -> Tensor:
        before, after = (self.size - 1) // 2, self.size // 2
        padded = F.pad(images, (before, after, before, after), mode="replicate")
        squares = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return squares.flatten(4).median(4).values


@checked
class Blur(nn.Module):
    """Gaussian blur with standard deviation ``sigma`` in pixels, edges repeated."""

    kernel: Tensor

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise KdsecError(f"sigma={sigma} must be above 0; 0.5 to 2 pixels are common")
        self.sigma = sigma
        reach = math.ceil(3 * sigma)
        weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
        self.register_buffer("kernel", weights / weights.sum())

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"

    def forward(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        reach = len(self.kernel) // 2
        maps = images.reshape(count * channels, 1, height, width)
        padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
        rows = F.conv2d(padded, self.kernel.to(images).view(1, 1, -1, 1))
        blurred = F.conv2d(rows, self.kernel.to(images).view(1, 1, 1, -1))
        return blurred.view_as(images).clamp(0, 1)


@checked
class JPEG(nn.Module):
    """The lossy step of JPEG: cosine transform of 8x8 blocks, frequencies rounded by the standard's table.

    Left out: the lossless coding, and the conversion of colours (every channel is treated as brightness). The
    gradient is zero: attack it through ``BPDA``.

    Args:
        quality: 1 to 100, scaled as the common encoders do; 75 is their default.
    """

    table: Tensor
    basis: Tensor

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise KdsecError(f"quality={quality}; choose 1 to 100, 75 is common")
        self.quality = quality
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality
        self.register_buffer("table", ((torch.tensor(LUMINANCE) * scale + 50) / 100).floor().clamp(1, 255))
        k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
        basis = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
        basis[0] /= math.sqrt(2)
        self.register_buffer("basis", basis)  # orthonormal: its inverse is its transpose

    def extra_repr(self) -> str:
        return f"quality={self.quality}"

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        bottom, right = -height % 8, -width % 8
        padded = F.pad(images.float(), (0, right, 0, bottom), mode="replicate") * 255 - 128
        blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)  # (N, C, H/8, W/8, 8, 8)
        coefficients = self.basis @ blocks @ self.basis.T
        kept = (coefficients / self.table).round() * self.table
        restored = (self.basis.T @ kept @ self.basis).transpose(3, 4).reshape(padded.shape)
        return ((restored[:, :, :height, :width] + 128) / 255).clamp(0, 1)


@checked
class RandomNoise(nn.Module):
    """Gaussian noise, drawn again in every call: a random defence, to be attacked through ``EOT``.

    Args:
        sigma: standard deviation in pixels of [0, 1], above 0.
        seed: of the whole sequence of calls.
    """

    def __init__(self, sigma: float, seed: int = 0) -> None:
        super().__init__()
        if not 0 < sigma <= 1:
            raise KdsecError(f"sigma={sigma:g} must be above 0 and at most 1; divide by 255 if in bytes")
        self.sigma, self.seed = sigma, seed
        self.generator = torch.Generator().manual_seed(seed)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, seed={self.seed}"

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=self.generator).to(images)
        return (images + self.sigma * noise).clamp(0, 1)
