"""Distances between images, and the checks of what attacks are given and of what they return.

Budgets are in pixels of [0, 1]. Every attack on labels passes its input through ``check_attack``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdsec.data import UNLABELLED
from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError, check_choice, check_number

NORMS = ("linf", "l2")
TOLERANCE = 1e-5  # float32 rounding of a pixel, or of an L2 norm over a few thousand pixels


def distance(images: Tensor, other: Tensor, norm: str = "linf") -> Tensor:
    """Distance of each pair of images, ``(N,)``, in pixels of [0, 1]."""
    change = to_float(images) - to_float(other)
    linf = check_choice("norm", norm, NORMS) == "linf"
    return change.flatten(1).abs().amax(1) if linf else l2_norm(change).flatten()


def l2_norm(change: Tensor) -> Tensor:
    """L2 norm of each image, ``(N, 1, 1, 1)``."""
    return change.flatten(1).norm(dim=1)[:, None, None, None]


def pixels(images: Tensor) -> Tensor:
    """Bytes or checked floats as float32 in [0, 1], in the memory format that convolutions are fastest in."""
    return to_float(images).float().clamp(0, 1).contiguous(memory_format=torch.channels_last)


def check_images(images: Tensor) -> None:
    """Refuse anything but images ``(N, C, H, W)`` of bytes or of floats in [0, 1] (up to rounding)."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise KdsecError(f"there are no images to attack in {shape}; give a tensor (N, C, H, W)")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise KdsecError(f"images of {images.dtype}; give bytes (uint8, 0 to 255) or floats in [0, 1]")
    low, high = (float(end) for end in images.aminmax())
    if not -TOLERANCE <= low <= high <= 1 + TOLERANCE:
        raise KdsecError(
            f"images with pixels from {low:g} to {high:g}; give floats in [0, 1] (divide by 255 if in bytes, "
            "leave normalisation to the model) or uint8"
        )


def check_labels(images: Tensor, labels: Tensor) -> Tensor:
    """The labels ``(N,)`` as int64 on the images' device; refused unless there is a class for each image."""
    given = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
    if given != (len(images),):
        raise KdsecError(f"labels {given} for {len(images)} images; an attack needs one label an image, (N,)")
    if labels.is_floating_point() or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise KdsecError(f"labels of {labels.dtype}; give one label an image, a whole number from 0")
    if bool((labels < 0).any()):
        missing = "images without one" if bool((labels == UNLABELLED).any()) else "negative ones"
        raise KdsecError(
            f"an attack needs one label an image, got {missing}; give predict(model, images).argmax(1)"
        )
    return labels.to(images.device, torch.long, copy=True)


def check_attack(images: Tensor, labels: Tensor, eps: float, norm: str) -> Tensor:
    """Check all that an attack on labels is given; the labels as ``check_labels`` returns them."""
    check_choice("norm", norm, NORMS)
    check_images(images)
    largest = 1.0 if norm == "linf" else math.sqrt(images[0].numel())
    check_number("eps", eps)
    if not 0 <= eps <= largest:
        raise KdsecError(f"eps={eps:g} is outside [0, {largest:g}] for {norm}; divide by 255 if in bytes")
    if torch.is_inference_mode_enabled():
        raise KdsecError("an attack needs gradients; call it outside torch.inference_mode()")
    return check_labels(images, labels)


def check_classes(largest: int, logits: Tensor) -> None:
    """Refuse labels up to ``largest`` of a model that has fewer classes."""
    if largest >= logits.shape[1]:
        raise KdsecError(
            f"label {largest} of a model with {logits.shape[1]} classes, which are 0 to {logits.shape[1] - 1}"
        )


def check_counts(**counts: int) -> None:
    """Refuse counts that are not whole numbers from 1 up."""
    if not all(isinstance(count, int) and count >= 1 for count in counts.values()):
        given = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise KdsecError(f"{given}: an attack needs at least 1 of each, in whole numbers")


def check_step(step_size: float | None, eps: float, steps: int) -> float:
    """The step size, 2.5 eps / steps if none is given; refused unless above 0."""
    check_number("eps", eps)
    step = 2.5 * eps / steps if step_size is None else step_size
    if eps > 0 and not 0 < step < math.inf:
        raise KdsecError(f"step_size={step:g} must be above 0; leave it out for 2.5 eps / steps")
    return step


def check_training_attack(eps: float, steps: int, step_size: float | None = None) -> None:
    """Refuse a training attack whose budget is 0 or not in pixels of [0, 1]."""
    if not 0 < eps <= 1:
        raise KdsecError(f"eps={eps:g} must be above 0 and at most 1; divide by 255 if in bytes")
    check_counts(steps=steps)
    check_step(step_size, eps, steps)


def check_result(found: Tensor, clean: Tensor, eps: float, norm: str) -> None:
    """Refuse images outside the budget or outside [0, 1]: the attack that made them is broken."""
    gap = distance(found, clean, norm).max().item()
    if math.isnan(gap):
        raise KdsecError("the attack met logits or gradients that are not numbers; check the model's weights")
    if not (gap <= eps + TOLERANCE and found.min().item() >= 0 and found.max().item() <= 1):
        raise KdsecError(f"the attack left its budget: {norm} distance {gap:.6f} with eps={eps:g}")
