"""Airbench networks: small, wide convolutional networks that reach 93 % on CIFAR-10 in eight epochs.

After Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498, section 3): a first
layer that whitens patches of 2x2 pixels and is not trained, three groups of two convolutions, filters that
start by copying their input, and a head without bias. The recipe in ``config/fields.py`` belongs to them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError
from kdsec.models.base import Body, Shape

PATCH = 2  # pixels a side
FLOOR = 5e-4  # added to variances, so that directions that hardly vary are not blown up to noise
MOMENTUM = 0.4  # of the running statistics: the last few batches count, since weights move fast


def airbench(num_classes: int, shape: Shape, *, widths: tuple[int, int, int]) -> Body:
    """Whitening, three groups of ``widths`` channels that halve height and width, a maximum over pixels."""
    filters = 2 * shape[0] * PATCH**2
    first, second, third = widths
    stages: list[nn.Module] = [
        nn.Sequential(Whitening(shape[0], filters), nn.GELU(), *_group(filters, first)),
        nn.Sequential(*_group(first, second)),
        nn.Sequential(*_group(second, third)),
    ]
    head = nn.Linear(third, num_classes, bias=False)
    nn.init.normal_(head.weight, std=1 / third)
    return stages, nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)


def _group(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        _copying(inputs, outputs),
        nn.MaxPool2d(2),
        _norm(outputs),
        nn.GELU(),
        _copying(outputs, outputs),
        _norm(outputs),
        nn.GELU(),
    ]


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation without a trained scale: the next convolution has one."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=MOMENTUM)
    layer.weight.requires_grad_(False)
    return layer


def _copying(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters copy its inputs (Dirac start)."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:inputs])
    return layer


class Whitening(nn.Conv2d):
    """A convolution of 2x2 pixels; after ``fit_to``, its outputs are uncorrelated and its filters fixed.

    Without a trained bias, unlike the paper's: then no gradient has to reach the largest tensors of the
    network, which saves a tenth of a step.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters, PATCH, bias=False)

    @torch.no_grad()
    def fit_to(self, images: Tensor) -> None:
        r"""Take the filters from normalised float images ``(N, C, H, W)``.

        With the patches' covariance :math:`E \Lambda E^\top`, the filters are the columns of
        :math:`\pm E (\Lambda + 0.0005)^{-1/2}` (arXiv:2404.00498, section 3.1).
        """
        patches = nn.functional.unfold(images, PATCH).transpose(1, 2).reshape(-1, self.weight[0].numel())
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + FLOOR).sqrt()).T.flip(0)
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        self.weight.requires_grad_(False)


def whiten(model: nn.Module, images: Tensor) -> None:
    """Fit the whitening layers of ``model`` to its training images ``(N, C, H, W)``; other nets stay.

    Raises:
        KdsecError: no images.
    """
    for layer in model.modules():
        if isinstance(layer, Whitening):
            if not len(images):
                raise KdsecError("whitening needs training images, got none; give some thousand")
            normalize = cast(nn.Module, model.normalize)
            layer.fit_to(normalize(to_float(images)))
