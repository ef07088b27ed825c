"""How alike two images look: SSIM, its multi-scale form, and the distance DSSIM that attacks are given.

Wang et al. 2004 (SSIM) and Wang, Simoncelli & Bovik 2003 (MS-SSIM). Images are in [0, 1], so the constants
are :math:`C_1 = 0.01^2` and :math:`C_2 = 0.03^2`.

Blurring with a window that is a product of two one-dimensional ones is two multiplications by a banded
matrix. On images of a few dozen pixels that is far cheaper than a convolution, and an attack blurs thousands
of times.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kdsec.budgets import check_images
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number

C1, C2 = 0.01**2, 0.03**2
# Wang, Simoncelli & Bovik 2003, section 3.2, finest scale first.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(first: Tensor, second: Tensor, window: int = 7, sigma: float | None = None) -> Tensor:
    """Structural similarity ``(N,)`` of images ``(N, C, H, W)`` in [0, 1] (Wang et al. 2004, eq. 13).

    Averaged over all channels and all places where the window fits.

    Args:
        first, second: the images.
        window: side of the window in pixels; on smaller images it shrinks to fit.
        sigma: of a Gaussian window, whose moments are weighted means (11 and 1.5 in the paper). None is a
            square window with the unbiased variance and covariance.
    """
    check_pair(first, second)
    check_number("window", window, least=1, whole=True)
    luminance, structure = _maps(first, second, window, sigma, unbiased=sigma is None)
    return (luminance * structure).flatten(1).mean(1)


def ms_ssim(first: Tensor, second: Tensor, levels: int = 5) -> Tensor:
    r"""Multi-scale structural similarity ``(N,)``, from 0 to 1 (Wang, Simoncelli & Bovik 2003, eq. 7).

    .. math:: \prod_{j<M} \overline{c s}_j^{\,w_j} \cdot \overline{l c s}_M^{\,w_M}

    of each channel, then averaged over the channels. Level j is the image halved j - 1 times by averaging
    2 x 2 pixels. The window is Gaussian, 11 pixels wide with sigma 1.5; where a level is smaller than that it
    shrinks to the level and sigma with it, as in TensorFlow's ``msssim.py`` and the mimicry attack's code.
    A level whose mean is negative counts as 0.

    Args:
        first, second: ``(N, C, H, W)`` in [0, 1].
        levels: M, 1 to 5. With fewer than 5 the first M weights are scaled to a sum of 1.

    Raises:
        KdsecError: levels out of range, or images too small to be halved so often.
    """
    check_pair(first, second)
    check_levels(levels, first.shape[-2:])
    weights = [weight / sum(SCALES[:levels]) for weight in SCALES[:levels]]
    product = torch.ones(first.shape[:2], device=first.device)
    for level, weight in enumerate(weights):
        luminance, structure = _maps(first, second, window=11, sigma=1.5)
        last = level + 1 == levels
        mean = (luminance * structure if last else structure).mean((2, 3))
        # A power below 1 has no finite slope at 0; the inner `where` keeps NaN out of the gradient.
        positive = mean > 0
        product = product * torch.where(positive, torch.where(positive, mean, 1.0) ** weight, 0.0)
        if not last:
            first, second = (torch.nn.functional.avg_pool2d(each, 2) for each in (first, second))
    return product.mean(1)


def dssim(first: Tensor, second: Tensor, levels: int = 5) -> Tensor:
    """Structural dissimilarity ``(N,)``, (1 - MS-SSIM) / 2: 0 for equal images, at most 0.5."""
    return (1 - ms_ssim(first, second, levels)) / 2


@checked(some=["images", "sources"])
def change(images: Tensor, sources: Tensor, levels: int = 5) -> dict[str, float]:
    """Mean change of ``images`` from ``sources``: DSSIM, L2 norm, and the largest of a pixel in 255ths."""
    images, sources = to_float(images), to_float(sources)
    check_pair(images, sources)
    difference = (images - sources).flatten(1)
    return {
        "DSSIM": dssim(images, sources, levels).mean().item(),
        "L2": difference.norm(dim=1).mean().item(),
        "largest change": 255 * difference.abs().amax(1).mean().item(),
    }


def check_pair(first: Tensor, second: Tensor) -> None:
    """Refuse anything but two batches of float images of one shape, and in [0, 1] where that costs nothing.

    An attack calls this in every step, with images that it keeps in [0, 1] itself.
    """
    for images in (first, second):
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise KdsecError("similarity is between two tensors of float images (N, C, H, W) in [0, 1]")
        if not images.requires_grad:
            check_images(images)
    if first.dtype != second.dtype:
        raise KdsecError(f"images of {first.dtype} and {second.dtype}; make both float32")
    if first.shape != second.shape:
        raise KdsecError(f"images {tuple(first.shape)} and {tuple(second.shape)} differ in shape")


def check_levels(levels: int, size: tuple[int, ...] | torch.Size) -> None:
    """Refuse a pyramid with more levels than the images ``(..., H, W)`` can be halved."""
    if type(levels) is not int or not 1 <= levels <= len(SCALES):
        raise KdsecError(f"levels={levels!r} of the pyramid must be 1 to {len(SCALES)}")
    smallest = min(size[-2:])
    if smallest < 2 ** (levels - 1):
        raise KdsecError(
            f"images of {size[-2]}x{size[-1]} are smaller than a pyramid of {levels} levels, which needs "
            f"{2 ** (levels - 1)} pixels; set levels to {smallest.bit_length()} or less"
        )


def _maps(
    first: Tensor, second: Tensor, window: int, sigma: float | None, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Luminance, and contrast times structure, at every place of the window.

    Both are written as one minus something: :math:`1 - (\mu_x-\mu_y)^2 / (\mu_x^2+\mu_y^2+C_1)` and
    :math:`1 - \mathrm{var}(x-y) / (\mathrm{var}\,x + \mathrm{var}\,y + C_2)`. In float32 the textbook form
    loses the small difference that an attack's budget is about.
    """
    height, width = first.shape[-2:]
    size = min(window, height, width)
    rows = _band(height, size, window, sigma).to(first)
    columns = _band(width, size, window, sigma).to(first).T

    stack = torch.stack([first, second, first - second])
    means = rows @ stack @ columns
    correction = size**2 / (size**2 - 1) if unbiased and size > 1 else 1.0
    variances = correction * (rows @ stack.square() @ columns - means.square()).clamp(min=0)
    luminance = 1 - means[2].square() / (means[0].square() + means[1].square() + C1)
    return luminance, 1 - variances[2] / (variances[0] + variances[1] + C2)


@lru_cache(maxsize=64)
def _band(length: int, size: int, window: int, sigma: float | None) -> Tensor:
    """The matrix ``(length - size + 1, length)`` that slides a window of ``size`` along a line."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    if sigma is None:
        weights = torch.ones_like(places)
    else:
        weights = torch.exp(-0.5 * (places / (sigma * size / window)) ** 2)
    band = torch.zeros(length - size + 1, length, dtype=torch.float64)
    for row in range(len(band)):
        band[row, row : row + size] = weights / weights.sum()
    return band
