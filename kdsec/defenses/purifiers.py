"""Input purifiers, and the defended model ``nn.Sequential(purifier, classifier)``.

A purifier maps images (N, C, H, W) in [0, 1] to images of the same shape.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.train import evaluating


@checked
def protect(purifier: nn.Module, classifier: nn.Module, shape: tuple[int, int, int]) -> nn.Sequential:
    """The defended model, ``nn.Sequential(purifier, classifier)`` in eval mode, checked to fit.

    The two are the same objects, not copies, and are in eval mode afterwards too. (A container made by hand
    starts in training mode.)

    Args:
        purifier: images to images.
        classifier: images to logits.
        shape: ``(C, H, W)`` of one image.

    Raises:
        KdsecError: the purifier takes other channels, or makes images of another shape.
    """
    device = next((tensor.device for tensor in classifier.parameters()), torch.device("cpu"))
    with evaluating(purifier), torch.no_grad():
        purified(purifier, {"one": torch.zeros(1, *shape, device=device)})
    return nn.Sequential(purifier, classifier).eval()


def purified(purifier: nn.Module, views: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``purifier`` makes of each view, in one pass: batch normalisation learns from all together.

    Raises:
        KdsecError: as ``check_fit``, or what it makes has another shape than what it was given.
    """
    given = torch.cat(list(views.values())) if len(views) > 1 else next(iter(views.values()))
    check_fit(purifier, given)
    made = purifier(given)
    if not isinstance(made, Tensor):
        raise KdsecError(f"a purifier must return images (N, C, H, W), not a {type(made).__name__}")
    if made.shape != given.shape:
        raise KdsecError(
            f"the purifier makes images {tuple(made.shape[1:])} of images {tuple(given.shape[1:])}; its "
            "strides must divide height and width: pad the images, or build it for this shape"
        )
    return dict(zip(views, made.chunk(len(views)), strict=True))


def check_fit(purifier: nn.Module, images: Tensor) -> None:
    """Refuse images of other channels than the first convolution takes."""
    first = next((layer for layer in purifier.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and first.in_channels != images.shape[1]:
        raise KdsecError(
            f"the purifier takes images of {first.in_channels} channels, got {images.shape[1]}; build it for "
            "the data's own shape (a set of pair(...) goes with disturb=Precomputed())"
        )


def encoder(purifier: nn.Module) -> nn.Module:
    """The half of an autoencoder whose output the feature level compares."""
    found = getattr(purifier, "encoder", None)
    if not isinstance(found, nn.Module):
        raise KdsecError(
            f"a {type(purifier).__name__} has no encoder to compare features of; use level='image'"
        )
    return found


@checked
def frozen(model: nn.Module) -> nn.Module:
    """A copy in eval mode that no training can change; gradients still flow through it to its input."""
    return copy.deepcopy(model).eval().requires_grad_(False)
