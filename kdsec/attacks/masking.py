"""Is a defence strong, or is the attack on it broken? Signs of masked gradients, measured.

A defence that hides its gradient stops the attacks that follow the gradient, and no others. Then numbers
come out that cannot be true: one step beats many, noise beats an attack, a larger budget helps the defence.
Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019 (arXiv 1902.06705) list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.ascent import Ball
from kdsec.attacks.evasion import check_attack, fgsm
from kdsec.attacks.whitebox import check_budget, strongest
from kdsec.data.imageset import to_float
from kdsec.train import evaluating, predict

NEXT_TO_NOTHING = 0.01  # a share of images


class Sign(NamedTuple):
    """One number that must not be above another: ``measured``, ``limit``, and whether it is, beyond noise."""

    name: str
    measured: float
    limit: float
    suspicious: bool


def answers(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified as their label, ``(N,)`` bool."""
    return predict(model, images).argmax(1) == labels


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


def lost_gradients(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """Share of images at which the cross-entropy's gradient by the image is exactly zero, or not a number."""
    lost = 0
    with evaluating(model):
        for pixels, wanted in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            # Not detach().float(): float images would then share memory with the caller's.
            current = to_float(pixels).float().clone().requires_grad_()
            loss = F.cross_entropy(model(current).float(), wanted, reduction="sum")
            # A model may have cut its graph altogether, which is the plainest case of all.
            gradient = torch.autograd.grad(loss, current)[0] if loss.requires_grad else current * 0
            size = gradient.flatten(1).abs().amax(1)
            lost += int(((size == 0) | ~size.isfinite()).sum())
    return lost / len(images)


def masking_signs(
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
) -> list[Sign]:
    """Accuracies that must not be above others, each with whether it is.

    Args:
        model: the whole defended model, as attacked.
        images: ``(N, C, H, W)`` in [0, 1], or bytes.
        labels: ``(N,)``.
        eps: L-infinity budget in pixels of [0, 1].
        steps: of the attack that is examined.
        others: adversarial images by the name of what made them without this model's gradient: grey box,
            transfer, queries. The white-box attack must do at least as well as each.
        draws: how often noise of size ``eps`` is tried.
        seed: of starts and noise.
        batch_size: images at a time.

    Returns:
        One ``Sign`` per check. A suspicious one says that the *attack* is not to be trusted, not that the
        defence is weak.

    Raises:
        KdsecError: as ``strongest``.
    """
    check_attack(images, labels, eps, "linf")
    check_budget(eps, steps)
    attack = partial(
        strongest, model, images, labels, steps=steps, restarts=1, seed=seed, batch_size=batch_size
    )
    right = partial(answers, model, labels=labels)
    attacked = right(attack(eps=eps))

    def compare(name: str, measured: Tensor, limit: Tensor) -> Sign:
        suspicious = beyond_noise(measured, limit)
        return Sign(name, measured.float().mean().item(), limit.float().mean().item(), suspicious)

    single = right(fgsm(model, images, labels, eps=eps, batch_size=batch_size))
    unlimited = right(attack(eps=1.0)).float().mean().item()
    lost = lost_gradients(model, images, labels, batch_size)
    signs = [
        Sign("images without a gradient", lost, 0.0, lost > NEXT_TO_NOTHING),
        Sign("unlimited budget", unlimited, 0.0, unlimited > NEXT_TO_NOTHING),
        compare("many steps against one", attacked, single),
        compare("attack against noise", attacked, _under_noise(model, images, labels, eps, draws, seed)),
        compare("twice the budget against once", right(attack(eps=min(1.0, 2 * eps))), attacked),
        compare("once the steps against twice", attacked, right(attack(eps=eps, steps=2 * steps))),
    ]
    return signs + [
        compare(f"attack against {name}", attacked, right(other)) for name, other in (others or {}).items()
    ]


def _under_noise(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, draws: int, seed: int
) -> Tensor:
    """Which images survive every one of ``draws`` random changes within the budget, ``(N,)`` bool."""
    generator = torch.Generator().manual_seed(seed)
    ball = Ball(to_float(images).float(), eps)
    stands = answers(model, images, labels)
    for _ in range(draws):
        stands &= answers(model, ball.random(generator), labels)
    return stands
