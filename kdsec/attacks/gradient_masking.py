"""Is a defence strong, or is the attack on it broken? Signs of masked gradients, measured.

A defence that hides its gradient stops the attacks that follow the gradient, and no others. Then numbers
come out that cannot be true: one step beats many, noise beats an attack, a larger budget helps the defence.
Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019 (arXiv 1902.06705) list them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdsec.attacks.adaptive import DRAWS, adaptive_pgd, is_random
from kdsec.budgets import check_classes
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.pgd import (
    GradientLog,
    PerturbationSet,
    ZeroGradientWarning,
    fgsm,
    in_batches,
    label_objective,
    projected_ascent,
)
from kdsec.train import predict

NEXT_TO_NOTHING = 0.01  # a share of images


class Check(NamedTuple):
    """One number that must not be above another: ``measured``, ``limit``, and whether it is, beyond noise."""

    name: str
    measured: float
    limit: float
    suspicious: bool


@checked
def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified as their label, ``(N,)`` bool."""
    logits = predict(model, images)
    if len(labels):
        check_classes(int(labels.max()), logits)
    return logits.argmax(1) == labels.to(images.device)


@checked
def mean_correct(model: nn.Module, images: Tensor, labels: Tensor, draws: int = DRAWS) -> Tensor:
    """Share of ``draws`` passes in which each image is classified as its label, ``(N,)``.

    One pass where two agree. The passes are fresh ones: an attack that kept what one draw fell to gains
    nothing here by that draw.
    """
    passes = draws if is_random(model, images) else 1
    return torch.stack([is_correct(model, images, labels) for _ in range(passes)]).float().mean(0)


@checked
def beyond_noise(higher: Tensor, lower: Tensor, errors: float = 2.0) -> bool:
    """Whether one share is really above the other, the two having been measured on the same images.

    Images on which both agree say nothing; the rest decide by the mean of the paired differences, which must
    be more than ``errors`` of its standard errors above 0.

    Args:
        higher, lower: ``(N,)`` bool, or 0 and 1.
        errors: how many standard errors count as noise.
    """
    gaps = higher.double() - lower.double()
    if len(gaps) < 2:
        return False
    return bool(gaps.mean() > 0 and gaps.mean() > errors * gaps.std() / len(gaps) ** 0.5)


@checked
def lost_gradients(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """Share of images at which the cross-entropy's gradient by the image is exactly zero."""
    log = GradientLog()

    def first(clean: Tensor, wanted: Tensor) -> Tensor:
        ball = PerturbationSet(clean, 0.0)
        return projected_ascent(label_objective(model, wanted), clean, ball, 0.0, 1, log)

    in_batches(first, model, images, labels, 0.0, "linf", batch_size)
    return log.zero / log.images


@checked
def masking_checks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 20,
    others: Mapping[str, Tensor] | None = None,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 250,
) -> list[Check]:
    """Accuracies that must not be above others, each with whether it is.

    A suspicious check says that the *attack* is not to be trusted, not that the defence is weak.

    Args:
        model: the whole defended model, as attacked.
        eps: L-infinity budget in pixels of [0, 1].
        steps: of the attack that is examined.
        others: adversarial images by the name of what made them without this model's gradient: grey box,
            transfer, queries. The white-box attack must do at least as well as each.
        draws: how often noise of size ``eps`` is tried.
        seed: of starts and noise.
        images, labels, batch_size: as in ``pgd``.

    Raises:
        KdsecError: as ``adaptive_pgd``.
    """
    right = partial(mean_correct, model, labels=labels)

    def survives(attack: Callable[..., Tensor], **options: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroGradientWarning)  # what is to be found here
            return right(attack(model, images, labels, batch_size=batch_size, **options))

    many = partial(survives, adaptive_pgd, steps=steps, restarts=1, seed=seed)
    attacked = many(eps=eps)

    def compare(name: str, measured: Tensor, limit: Tensor) -> Check:
        suspicious = beyond_noise(measured, limit)
        return Check(name, measured.mean().item(), limit.mean().item(), suspicious)

    unlimited = many(eps=1.0).mean().item()
    lost = lost_gradients(model, images, labels, batch_size)
    signs = [
        Check("images without a gradient", lost, 0.0, lost > NEXT_TO_NOTHING),
        Check("unlimited budget", unlimited, 0.0, unlimited > NEXT_TO_NOTHING),
        compare("many steps against one", attacked, survives(fgsm, eps=eps)),
        compare("attack against noise", attacked, _under_noise(right, images, eps, draws, seed)),
        compare("twice the budget against once", many(eps=min(1.0, 2 * eps)), attacked),
        compare("once the steps against twice", attacked, many(eps=eps, steps=2 * steps)),
    ]
    return signs + [
        compare(f"attack against {name}", attacked, right(other)) for name, other in (others or {}).items()
    ]


def _under_noise(
    right: Callable[[Tensor], Tensor], images: Tensor, eps: float, draws: int, seed: int
) -> Tensor:
    """The least that ``right`` says of each image under ``draws`` random changes, ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    ball = PerturbationSet(to_float(images).float(), eps)
    return torch.stack([right(images), *(right(ball.random(generator)) for _ in range(draws))]).amin(0)
