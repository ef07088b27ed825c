"""Evasion: images changed so little that a person sees no difference, and classified as something else.

One signature for all: ``attack(model, images, labels, *, eps, ...) -> images``. Images are in [0, 1] (bytes
are converted) and normalisation is inside the model, so ``eps`` is in pixels whatever the data set. What
comes back is float32, inside [0, 1] and inside the budget; both are checked again at the end.

FGSM and PGD are written out here, because they are the lesson. ``kdsec.attacks.library`` has a wider set
(APGD, Square, CW, DeepFool, AutoAttack) from a package that kdsec does not install by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.ascent import Ball, climb, length
from kdsec.data import UNLABELLED
from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError, choose
from kdsec.train import autocast, evaluating

NORMS = ("linf", "l2")
TOLERANCE = 1e-5  # float32 rounding of an L2 norm over a few thousand pixels


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, targeted: bool = False, **options: Any
) -> Tensor:
    r"""Fast gradient sign method: :math:`x' = x + \varepsilon\,\mathrm{sign}\,\nabla_x \mathrm{CE}(f(x), y)`.

    Goodfellow et al. 2015 (arXiv 1412.6572), section 4. Arguments as in ``pgd``.
    """
    return pgd(
        model,
        images,
        labels,
        eps=eps,
        steps=1,
        step_size=eps,
        random_start=False,
        targeted=targeted,
        **options,
    )


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
    targeted: bool = False,
    random_start: bool = True,
    restarts: int = 1,
    stop_early: bool = False,
    seed: int = 0,
    batch_size: int = 250,
    precision: str = "float32",
) -> Tensor:
    r"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083, section 2.1).

    .. math:: x'_{i+1} = \Pi\big(x'_i + \eta\, d(\nabla_x \mathrm{CE}(f(x'_i), y))\big)

    with :math:`\Pi` the projection into the ball of radius eps and into [0, 1], and :math:`d` the sign for
    L-infinity, the unit vector for L2.

    Args:
        model: attacked in eval mode, left in the mode it was in.
        images: ``(N, C, H, W)`` in [0, 1], or bytes.
        labels: ``(N,)``: what the images should stop being, or with ``targeted`` become.
        eps: radius in pixels of [0, 1]; at most 1 for L-infinity, the image's diagonal for L2.
        steps: forward and backward passes, at least 1.
        step_size: eta; 2.5 eps / steps if not given, which reaches the rim from anywhere in the ball.
        norm: ``linf`` or ``l2``.
        targeted: go down the loss of ``labels`` instead of up.
        random_start: begin at a random point of the ball instead of the image.
        restarts: how often to begin; of each image the attempt with the largest loss is kept.
        stop_early: leave an image alone as soon as it is fooled; cheaper, and the loss stays smaller.
        seed: of the random starts.
        batch_size: images at a time.
        precision: as in ``Recipe``; the images stay float32, only the network computes in it.

    Raises:
        KdsecError: a budget outside its range, no steps, an unknown norm, or images without labels.
    """
    check_attack(images, labels, eps, norm)
    if steps < 1 or restarts < 1:
        raise KdsecError(f"steps={steps}, restarts={restarts}: an attack needs at least 1 of each")
    step = 2.5 * eps / steps if step_size is None else step_size
    generator = torch.Generator().manual_seed(seed)  # on the CPU: one stream for every device

    def attack(clean: Tensor, wanted: Tensor) -> Tensor:
        ball = Ball(clean, eps, norm)
        best, best_loss = clean, torch.full((len(clean),), -math.inf, device=clean.device)
        for _ in range(restarts):
            start = ball.random(generator) if random_start else clean
            found = ascend(model, start, wanted, ball, step, steps, targeted, stop_early)
            if restarts == 1:
                return found
            loss = objective(model, found, wanted, targeted)[0]
            better = loss > best_loss
            best = torch.where(better[:, None, None, None], found, best)
            best_loss = torch.where(better, loss, best_loss)
        return best

    with torch.autocast(**autocast(precision, images.device)):
        return in_batches(attack, model, images, labels, eps, norm, batch_size)


def ascend(
    model: nn.Module,
    start: Tensor,
    labels: Tensor,
    ball: Ball,
    step: float | Tensor,
    steps: int,
    targeted: bool = False,
    stop_early: bool = False,
) -> Tensor:
    """The loop of PGD, on one batch, without checks; one forward and one backward pass a step."""

    def aim(images: Tensor, active: Tensor) -> tuple[Tensor, Tensor | None]:
        wanted = labels[active]
        loss, logits = objective(model, images, wanted, targeted)
        return loss, (logits.argmax(1) != wanted) != targeted if stop_early else None

    return climb(aim, start, ball, step, steps)


def objective(model: nn.Module, images: Tensor, labels: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """What the attacker wants large, ``(N,)``, and the logits ``(N, K)``, both float32."""
    logits = model(images).float()
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (-loss if targeted else loss), logits


def distance(images: Tensor, other: Tensor, norm: str = "linf") -> Tensor:
    """How far apart each two images are, ``(N,)``, in pixels of [0, 1]."""
    change = to_float(images) - to_float(other)
    linf = choose("norm", norm, NORMS) == "linf"
    return change.flatten(1).abs().amax(1) if linf else length(change).flatten()


def check_attack(images: Tensor, labels: Tensor, eps: float, norm: str) -> None:
    """Refuse a budget that is not in pixels of [0, 1], and images without labels."""
    choose("norm", norm, NORMS)
    most = 1.0 if norm == "linf" else math.sqrt(images[0].numel())
    if not 0 <= eps <= most:
        raise KdsecError(f"eps={eps:g} is outside [0, {most:g}] for {norm}; divide by 255 if in bytes")
    if len(labels) != len(images) or bool((labels == UNLABELLED).any()):
        raise KdsecError("an attack needs one label an image; without, give predict(model, images).argmax(1)")


def check_result(found: Tensor, clean: Tensor, eps: float, norm: str) -> None:
    """Refuse images outside the budget or outside [0, 1]: the attack that made them is broken."""
    gap = distance(found, clean, norm).max().item()
    if not (gap <= eps + TOLERANCE and found.min().item() >= 0 and found.max().item() <= 1):
        raise KdsecError(f"the attack left its budget: {norm} distance {gap:.6f} with eps={eps:g}")


def in_batches(
    attack: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: str,
    batch_size: int,
) -> Tensor:
    """Run ``attack`` on large batches of the model in eval mode, and check what it returns."""
    found = []
    with evaluating(model), torch.no_grad():
        for pixels, wanted in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            clean = to_float(pixels).float().contiguous(memory_format=torch.channels_last)
            result = attack(clean, wanted)
            check_result(result, clean, eps, norm)
            found.append(result)
    return torch.cat(found)
