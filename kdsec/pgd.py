"""Projected gradient ascent near given images: the one loop of every attack and of adversarial training.

An *objective* takes images ``(n, C, H, W)`` and their positions ``(n,)`` in the batch. It returns what is
*maximised*, one value an image ``(n,)``, and which images are done ``(n,)``, or None where all go on. To
minimise, return the negative. Images are in [0, 1]; normalisation is inside the model, so eps is in pixels.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.budgets import (
    check_attack,
    check_classes,
    check_counts,
    check_images,
    check_result,
    check_step,
    l2_norm,
    pixels,
)
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.logits import as_logits, margin
from kdsec.train import autocast, evaluating

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
Step = float | Tensor | Callable[[int], float | Tensor]

LOSSES = ("cross-entropy", "margin", "targeted margin")
NO_GRADIENT = (
    "the model's output has no gradient with respect to its input (no_grad, inference_mode or detach inside "
    "forward?); remove that, wrap the part in BPDA, or attack another model and transfer its images"
)


@dataclass(frozen=True)
class PerturbationSet:
    """Images at most ``eps`` from ``centre`` in ``norm``, with pixels from ``low`` to ``high``.

    ``eps``, ``low`` and ``high`` are numbers, or tensors that broadcast to the images; a budget for each
    image has shape ``(N, 1, 1, 1)``.
    """

    centre: Tensor
    eps: Any
    norm: str = "linf"
    low: Any = 0.0
    high: Any = 1.0

    def project(self, images: Tensor) -> Tensor:
        """The nearest allowed images (for L2, nearest in the ball and then in the box)."""
        change = images - self.centre
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / l2_norm(change).clamp(min=1e-12)).clamp(max=1)
        return (self.centre + change).clamp(self.low, self.high)

    def random(self, generator: torch.Generator) -> Tensor:
        """Images drawn uniformly from the ball and projected into the box; drawn on the CPU."""
        noise = torch.empty(self.centre.shape)
        if self.norm == "linf":
            noise.uniform_(-1, 1, generator=generator)
        else:
            noise.normal_(generator=generator)
            radius = torch.rand(len(noise), 1, 1, 1, generator=generator) ** (1 / noise[0].numel())
            noise *= radius / l2_norm(noise)
        return self.project(self.centre + self.eps * noise.to(self.centre.device))

    def rows(self, index: Tensor) -> PerturbationSet:
        """The set for the images at ``index`` only."""
        return dataclasses.replace(self, centre=self.centre[index], eps=_rows(self.eps, index))


class ZeroGradientWarning(UserWarning):
    """An attack that follows gradients found none: it says nothing about the model."""


class GradientLog:
    """Counts images whose first gradient is exactly zero, over all batches and starts of one attack."""

    def __init__(self) -> None:
        self.images, self.zero = 0, 0

    def add(self, gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            raise KdsecError(
                "the gradient is infinite or not a number; check the model's weights and its input"
            )
        self.images += len(gradient)
        self.zero += int((gradient == 0).flatten(1).all(1).sum())

    def report(self) -> None:
        """Warn if there was no gradient anywhere."""
        if self.images and self.zero == self.images:
            warnings.warn(
                "the gradient is zero at every image, so this attack changes nothing and proves nothing: "
                "gradient masking (kdsec.attacks.gradient_masking); attack through BPDA, or transfer images",
                ZeroGradientWarning,
                stacklevel=3,
            )


def projected_ascent(
    objective: Objective,
    start: Tensor,
    allowed: PerturbationSet,
    step: Step,
    steps: int,
    log: GradientLog | None = None,
) -> Tensor:
    """Maximise ``objective`` from ``start`` inside ``allowed``; the last iterates ``(N, C, H, W)``.

    Each step moves by ``step`` along the gradient's sign (L-infinity) or the unit gradient (L2), and
    projects. Images that are done stay as they are and leave the batch, so that later steps cost less. One
    forward and one backward pass a step; the backward pass computes no gradients of the weights.

    Args:
        objective: see the module; weights in the mode in which they are to be attacked.
        start: first iterates.
        allowed: where iterates may be.
        step: in pixels of [0, 1], or as an L2 norm; a function of the step's number gives a schedule.
        steps: number of steps.
        log: is told the first gradient.

    Raises:
        KdsecError: the objective has no gradient with respect to the images.
    """
    images, active = start, torch.arange(len(start), device=start.device)
    for number in range(steps):
        everyone = len(active) == len(start)
        current = (images if everyone else images[active]).detach().requires_grad_()
        with torch.enable_grad():
            value, done = objective(current, active)
            gradient = input_gradient(value, current)
        if log is not None and number == 0:
            log.add(gradient)
        if done is not None and bool(done.any()):
            active, current, gradient = active[~done], current[~done], gradient[~done]
            everyone = False
            if not len(active):
                break
        size = _rows(step(number) if callable(step) else step, active)
        ball, unit = allowed if everyone else allowed.rows(active), direction(gradient, allowed.norm)
        moved = ball.project(current.detach() + size * unit)
        images = moved if everyone else images.index_copy(0, active, moved)
    return images


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest step of size 1: the gradient's sign for ``linf``, the unit gradient for ``l2``."""
    return gradient.sign() if norm == "linf" else gradient / l2_norm(gradient).clamp(min=1e-12)


def input_gradient(value: Tensor, images: Tensor) -> Tensor:
    """Gradient of the sum of ``value`` ``(n,)`` by ``images``: that of an image depends on no other image."""
    if value.device.type == "cpu" and bool(value.isnan().any()):  # its gradient's sign would be 0
        raise KdsecError("the attack met logits that are not numbers; check the model's weights")
    found = torch.autograd.grad(value.sum(), images, allow_unused=True)[0] if value.requires_grad else None
    if found is None:
        raise KdsecError(NO_GRADIENT)
    return found


def check_gradient(logits: Tensor, source: Tensor) -> None:
    """Refuse ``logits`` that do not depend on ``source``, as far as gradients know; both keep their graph."""
    value = logits.sum()
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, source, retain_graph=True, allow_unused=True)
    if not value.requires_grad or found is None:
        raise KdsecError(NO_GRADIENT)


class BestIterate:
    """The best allowed iterate of each image so far, and which images are done.

    Attributes:
        images, value: the best iterates ``(N, C, H, W)`` and their values ``(N,)``, to be maximised.
        steps: evaluations of each image ``(N,)``.

    Args:
        sources: returned where no iterate was allowed.
        goal: an image is done when its value, from below 0, has risen to this share of its first (0: never).
        patience: or after this many evaluations without improvement (0: never).
        judge: ``judge(images, positions) -> (n,)``, a second look at iterates that seem better: the mean of
            a random objective, so that a lucky draw is not kept.
    """

    def __init__(
        self,
        sources: Tensor,
        goal: float = 0.0,
        patience: int = 0,
        judge: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.goal, self.patience, self.judge = goal, patience, judge
        self.images = sources.clone()
        self.value = torch.full((len(sources),), -math.inf, device=sources.device)
        self.first = torch.full_like(self.value, math.nan)
        self.steps = torch.zeros(len(sources), dtype=torch.long, device=sources.device)
        self.idle = torch.zeros_like(self.steps)

    def restart(self) -> Tensor:
        """Forget lost patience; positions of the images whose goal is not reached."""
        self.idle.zero_()
        return (~self._reached(torch.arange(len(self.steps), device=self.steps.device))).nonzero().squeeze(1)

    def offer(self, index: Tensor, images: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Keep those of ``images`` that are ``allowed`` and better; which of them are done ``(n,)``."""
        self.first[index] = torch.where(self.first[index].isnan(), value, self.first[index])
        self.steps[index] += 1
        better = value > self.value[index]
        better = better if allowed is None else better & allowed
        if self.judge and bool(better.any()):
            value = value.index_put((better,), self.judge(images[better], index[better]))
            better = better & (value > self.value[index])
        chosen = index[better]
        self.images[chosen], self.value[chosen] = images[better], value[better]
        self.idle[index] = torch.where(better, 0, self.idle[index] + 1)
        done = self._reached(index)
        return done | (self.idle[index] >= self.patience) if self.patience else done

    def _reached(self, index: Tensor) -> Tensor:
        if not self.goal:  # a value may be positive: then "a share of the first" means nothing
            return torch.zeros_like(index, dtype=torch.bool)
        return self.value[index] >= self.goal * self.first[index]


def answer(model: nn.Module, images: Tensor) -> Tensor:
    """Logits ``(N, K)`` in float32, with a gradient to the images where the model has one.

    Raises:
        KdsecError: what the model returns is not logits, or a part of it runs in inference mode.
    """
    try:
        return as_logits(model(images), len(images), values=False).float()
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise KdsecError(NO_GRADIENT) from None


def label_objective(
    model: nn.Module,
    labels: Tensor,
    loss: str = "cross-entropy",
    *,
    rivals: Tensor | None = None,
    targeted: bool = False,
    stop_early: bool = False,
    largest: int | None = None,
) -> Objective:
    """The ``loss`` (of ``LOSSES``) of ``model`` at ``labels`` ``(N,)``, negated if ``targeted``.

    ``targeted margin`` is the logit of the wrong classes ``rivals`` ``(N,)`` minus that of the labels. With
    ``stop_early`` an image is done once it is misclassified, or is classified as the target. The model must
    have a class ``largest``: the largest of ``labels``, unless they are a part of those of an attack.
    """
    largest = int(labels.max()) if largest is None else largest

    def objective(images: Tensor, which: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, wanted = answer(model, images), labels[which]
        check_classes(largest, logits)
        if loss == "targeted margin" and rivals is not None:
            both = logits.gather(1, torch.stack([rivals[which], wanted], 1))
            value = both[:, 0] - both[:, 1]
        elif loss == "margin":
            value = margin(logits, wanted)
        else:
            value = F.cross_entropy(logits, wanted, reduction="none")
        done = (logits.argmax(1) != wanted) != targeted if stop_early else None
        return (-value if targeted else value), done

    return objective


@checked
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

    with :math:`\Pi` the projection into the ball of radius eps and into [0, 1], and :math:`d` the gradient's
    ``direction``. Float32 images, in the budget and in [0, 1].

    Args:
        model: attacked in eval mode, left in the mode it was in.
        images: ``(N, C, H, W)`` in [0, 1], or bytes.
        labels: ``(N,)``: what the images should stop being, or with ``targeted`` become.
        eps: radius in pixels of [0, 1]; at most 1 for ``linf``, the image's diagonal for ``l2``.
        steps: forward and backward passes, at least 1.
        step_size: eta; 2.5 eps / steps if not given, which reaches the rim from anywhere.
        random_start: begin at a random point of the ball, drawn from ``seed``, instead of the image.
        restarts: number of attempts; of each image the one with the largest loss is kept.
        stop_early: leave an image as soon as it is fooled; cheaper, and the loss stays smaller.
        precision: as in ``Recipe``; the images stay float32, only the network computes in it.

    Raises:
        KdsecError: arguments out of range, wrong images or labels, or a model without gradients.
    """
    check_counts(steps=steps, restarts=restarts, batch_size=batch_size)
    step = check_step(step_size, eps, steps)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: one stream for every device
    log = GradientLog()

    def attack(clean: Tensor, wanted: Tensor) -> Tensor:
        allowed = PerturbationSet(clean, eps, norm)
        largest = int(labels.max())  # of later batches too: refused before any work
        objective = label_objective(model, wanted, targeted=targeted, stop_early=stop_early, largest=largest)
        every, best = torch.arange(len(clean), device=clean.device), BestIterate(clean)
        for _ in range(restarts):
            start = allowed.random(generator) if random_start else clean
            found = projected_ascent(objective, start, allowed, step, steps, log)
            if restarts > 1:
                best.offer(every, found, objective(found, every)[0])
        return best.images if restarts > 1 else found

    check_images(images)
    with torch.autocast(**autocast(precision, images.device)):
        found = in_batches(attack, model, images, labels, eps, norm, batch_size)
    log.report()
    return found


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **options: Any) -> Tensor:
    r"""Fast gradient sign method: :math:`x' = x + \varepsilon\,\mathrm{sign}\,\nabla_x \mathrm{CE}(f(x), y)`.

    Goodfellow et al. 2015 (arXiv 1412.6572), section 4. Arguments as in ``pgd``.
    """
    return pgd(model, images, labels, eps=eps, steps=1, step_size=eps, random_start=False, **options)


def in_batches(
    attack: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: str,
    batch_size: int,
) -> Tensor:
    """Check the input, run ``attack`` on batches of the model in eval mode, and check what it returns."""
    labels = check_attack(images, labels, eps, norm)
    found = []
    with evaluating(model), torch.no_grad():
        for part, wanted in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            clean = pixels(part)
            found.append(attack(clean, wanted))
            check_result(found[-1], clean, eps, norm)
    return torch.cat(found)


def _rows(value: Any, index: Tensor) -> Any:
    """The rows of a value for each image; other numbers and tensors as they are."""
    return value[index] if isinstance(value, Tensor) and value.ndim == 4 and len(value) > 1 else value
