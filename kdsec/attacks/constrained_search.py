"""Maximise any objective over images within a budget: perceptual (DSSIM) or per pixel (L-infinity).

``objective(images, index)`` returns one value an image, to be maximised; ``index`` says which of all images
these are. Every image is a problem of its own with a budget of its own, and leaves the batch when it is done.

The results are images as a file can hold them: every pixel a whole number of 255ths, the budget checked
again after rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kdsec.attacks.similarity import check_levels, dssim
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.pgd import BestIterate, PerturbationSet, input_gradient, projected_ascent
from kdsec.train import autocast

Objective = Callable[[Tensor, Tensor], Tensor]  # images (n, C, H, W), index (n,) -> (n,), maximised
DRAWS = 10  # passes whose mean judges an iterate under a random objective


class SearchResult(NamedTuple):
    """Images ``(N, C, H, W)`` in 255ths, the objective there, the budget they use, and the steps taken."""

    images: Tensor
    value: Tensor
    spent: Tensor
    steps: Tensor


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When an image is done before the last step, and the precision of the objective.

    Attributes:
        goal: share of its first value that an objective below 0 has to reach (0: never).
        patience: number of steps without improvement (0: never).
        precision: of the objective, as in ``Recipe``; images, budget and steps stay float32.
    """

    goal: float = 0.0
    patience: int = 0
    precision: str = "float32"


@checked
@dataclass(frozen=True)
class Dssim(Stop):
    r"""The search of Wang et al. 2018: the largest objective among images with DSSIM below a budget.

    Their code maximises :math:`f(x') - \lambda \max(d(x', x) - P, 0)^2` over m, where
    :math:`x' = \tanh(m + \mathrm{arctanh}((x - \frac12) c)) / c + \frac12`, by Adadelta, and keeps the best
    iterate with :math:`d < P`. DSSIM is (1 - MS-SSIM) / 2. It bounds no single pixel.

    Attributes:
        budget: P, above 0 and at most 1 (which allows everything); a number, or one per image ``(N,)``.
        steps: their sample script takes 2,000.
        levels: of the pyramid of MS-SSIM; small images have room for fewer than 5.
        penalty: lambda, fixed.
        lr, rho, stabilizer: of Adadelta; the defaults are those of the code (and not PyTorch's).
        slack: c is 2 minus this. At the code's 1e-6 a pixel of 0 or 1 sits where tanh is flat and hardly
            moves; handwriting has little else, and needs about 0.01.
    """

    budget: float | Tensor = 0.003
    steps: int = 2_000
    levels: int = 5
    penalty: float = 1e10
    lr: float = 1.0
    rho: float = 0.95
    stabilizer: float = 1e-8
    slack: float = 1e-6

    def __post_init__(self) -> None:
        _check_budget("budget", self.budget, "DSSIM")
        _check_steps(self.steps, self.goal, self.patience)
        if not 0 < self.slack < 1 or not self.lr > 0 or not self.penalty > 0:
            raise KdsecError(
                f"slack={self.slack}, lr={self.lr}, penalty={self.penalty}: slack lies between 0 and 1, "
                "the others are above 0"
            )

    def spend(self, images: Tensor, sources: Tensor) -> Tensor:
        """DSSIM ``(N,)``."""
        return dssim(images, sources, self.levels)

    def search(self, objective: Objective, sources: Tensor, index: Tensor) -> SearchResult:
        """On one batch: float ``sources`` ``(n, C, H, W)``; ``index`` ``(n,)``, their places in the whole."""
        check_levels(self.levels, sources.shape[-2:])
        budget = _per_image(self.budget, index)
        scale = 2 - self.slack
        origin = torch.atanh((sources - 0.5) * scale)
        moved = torch.full_like(sources, 1e-6)
        squares, changes = torch.zeros_like(sources), torch.zeros_like(sources)
        best = BestIterate(sources, self.goal, self.patience, _judge(objective, sources, index))
        active = torch.arange(len(sources), device=sources.device)
        for _ in range(self.steps):
            point = moved[active].requires_grad_()
            with torch.enable_grad():
                images = torch.tanh(point + origin[active]) / scale + 0.5
                value = objective(images, index[active])
                over = self.spend(images, sources[active]) - budget[active]
                slope = input_gradient(value - self.penalty * over.clamp(min=0).square(), point)
            done = best.offer(active, images.detach(), value.detach(), over.detach() < 0)
            square = squares[active].mul_(self.rho).addcmul_(slope, slope, value=1 - self.rho)
            change = changes[active]
            step = slope * ((change + self.stabilizer) / (square + self.stabilizer)).sqrt_()
            squares[active] = square
            changes[active] = change.mul_(self.rho).addcmul_(step, step, value=1 - self.rho)
            moved[active] = point.detach() + self.lr * step
            active = active[~done]
            if not len(active):
                break
        images = self._rounded(best.images, sources, budget)
        return SearchResult(images, objective(images, index), self.spend(images, sources), best.steps)

    def _rounded(self, images: Tensor, sources: Tensor, budget: Tensor) -> Tensor:
        """To whole 255ths; where that breaks the budget, the change is made smaller until it does not."""
        share = torch.ones(len(images), device=images.device)
        for _ in range(60):
            rounded = _bytes(sources + share[:, None, None, None] * (images - sources))
            over = self.spend(rounded, sources) >= budget
            if not bool(over.any()):
                return rounded
            share = torch.where(over, share * 0.9, share)
        rounded = _bytes(sources + torch.where(over, 0.0, share)[:, None, None, None] * (images - sources))
        if bool((self.spend(rounded, sources) >= budget).any()):
            raise KdsecError(
                f"budget={float(budget.min()):g} is less than rounding the sources to bytes costs; "
                "give sources that are bytes, or a larger budget"
            )
        return rounded


@checked
@dataclass(frozen=True)
class Linf(Stop):
    """Projected gradient descent in a box around each image; steps shrink along a half cosine.

    Attributes:
        eps: the largest change of a pixel, in [0, 1]; a number, or one per image ``(N,)``.
        steps: forward and backward passes a restart.
        step: the first step as a share of eps.
        restarts: the first begins at the image, the others at random points of the box.
        seed: of those.
    """

    eps: float | Tensor = 4 / 255
    steps: int = 200
    step: float = 0.1
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_budget("eps", self.eps, "a pixel's change")
        _check_steps(self.steps, self.goal, self.patience)
        if self.restarts < 1 or not self.step > 0:
            raise KdsecError(
                f"restarts={self.restarts}, step={self.step}: give 1 or more, and a step above 0"
            )

    def spend(self, images: Tensor, sources: Tensor) -> Tensor:
        """Largest change of a pixel, ``(N,)``."""
        return (images - sources).flatten(1).abs().amax(1)

    def search(self, objective: Objective, sources: Tensor, index: Tensor) -> SearchResult:
        """On one batch; see ``Dssim.search``."""
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU: one stream for every device
        eps = _per_image(self.eps, index)[:, None, None, None]
        allowed = PerturbationSet(sources, eps)
        best = BestIterate(sources, self.goal, self.patience, _judge(objective, sources, index))

        def size(number: int) -> Tensor:
            return self.step * (1 + math.cos(math.pi * number / self.steps)) / 2 * eps[going]

        for restart in range(self.restarts):
            start = allowed.random(generator) if restart else sources
            going = best.restart()
            if not len(going):
                break
            offered = partial(_offered, objective, best, index, going)
            # One more: the last step has size 0 and only looks at where the search has ended.
            projected_ascent(offered, start[going], allowed.rows(going), size, self.steps + 1)
        images = self._rounded(best.images, sources, eps)
        return SearchResult(images, objective(images, index), self.spend(images, sources), best.steps)

    def _rounded(self, images: Tensor, sources: Tensor, eps: Tensor) -> Tensor:
        """To whole 255ths inside the box: its faces are moved inward to the next whole number first."""
        # Without the hair's breadth, 4/255 in float32 could lie just below 4 of 255.
        low, high = ((sources - eps) * 255 - 1e-3).ceil(), ((sources + eps) * 255 + 1e-3).floor()
        if bool((low > high).any()):
            raise KdsecError(
                f"eps={float(eps.min()):g} leaves no whole 255th near the sources; give 1/255 or more"
            )
        return (images * 255).round().clamp(low, high).clamp(0, 255) / 255


def _judge(objective: Objective, sources: Tensor, index: Tensor) -> Objective | None:
    """The mean of several passes of an objective two of whose passes differ; None for any other."""
    first, second = (objective(sources[:32], index[:32]) for _ in range(2))
    if torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        return None

    def judge(images: Tensor, which: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([objective(images, index[which]) for _ in range(DRAWS)]).mean(0)

    return judge


def _offered(
    objective: Objective, best: BestIterate, index: Tensor, going: Tensor, images: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """The objective of some of the ``going`` images, which are compared with the best so far."""
    value = objective(images, index[going[which]])
    return value, best.offer(going[which], images.detach(), value.detach())


Budget = Dssim | Linf


def constrained_search(
    objective: Objective, sources: Tensor, budget: Budget, batch_size: int = 250
) -> SearchResult:
    """The images within ``budget`` of ``sources`` with the largest objective.

    Args:
        objective: one number an image; networks inside it in eval mode.
        sources: ``(N, C, H, W)`` in [0, 1], or bytes.
        budget: how, and how far.
        batch_size: images at a time; changes nothing but speed and memory.

    Raises:
        KdsecError: images too small for the pyramid, no images, budgets for another number of images.
    """
    if not len(sources):
        raise KdsecError("there are no images to attack; give at least one")
    limit = budget.budget if isinstance(budget, Dssim) else budget.eps
    if isinstance(limit, Tensor) and len(limit) != len(sources):
        raise KdsecError(f"{len(limit)} budgets for {len(sources)} images; give one each, or one number")
    parts = []
    fast = _fast(objective, budget.precision, sources.device)
    with torch.no_grad():
        for index in torch.arange(len(sources), device=sources.device).split(batch_size):
            parts.append(budget.search(fast, to_float(sources[index]).float(), index))
    found = SearchResult(*(torch.cat(each) for each in zip(*parts, strict=True)))
    _check_found(found, limit)
    return found


def _fast(objective: Objective, precision: str, device: torch.device) -> Objective:
    """The same objective, asked in the memory format and the precision that networks are fastest in."""
    cast = autocast(precision, device)

    def ask(images: Tensor, index: Tensor) -> Tensor:
        with torch.autocast(**cast):
            return objective(images.contiguous(memory_format=torch.channels_last), index).float()

    return ask


def portion(budget: Budget, index: Tensor) -> Budget:
    """The budget for the images at ``index``, any of them as often as it is named."""
    if isinstance(budget, Dssim):
        limit = budget.budget
        return dataclasses.replace(budget, budget=limit[index]) if isinstance(limit, Tensor) else budget
    return dataclasses.replace(budget, eps=budget.eps[index]) if isinstance(budget.eps, Tensor) else budget


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round() / 255


def _per_image(budget: float | Tensor, index: Tensor) -> Tensor:
    if isinstance(budget, Tensor):
        return budget.to(index.device).float()[index]
    return torch.full((len(index),), budget, device=index.device)


def _check_budget(name: str, budget: float | Tensor, of: str) -> None:
    values = torch.as_tensor(budget)
    if values.ndim > 1 or not bool(((values > 0) & (values <= 1)).all()):
        shown = budget if isinstance(budget, float | int) else values.flatten().tolist()[:3]
        raise KdsecError(f"{name}={shown}: the budget of {of} must be above 0 and at most 1")


def _check_steps(steps: int, goal: float, patience: int) -> None:
    if steps < 1 or not 0 <= goal < 1 or patience < 0:
        raise KdsecError(
            f"steps={steps}, goal={goal}, patience={patience}: at least 1 step, a share below 1, 0 or more"
        )


def _check_found(found: SearchResult, limit: float | Tensor) -> None:
    """The last word: what leaves this module is inside its budget and inside [0, 1]."""
    over = (found.spent - torch.as_tensor(limit, device=found.spent.device)).max().item()
    if not (over <= 1e-5 and found.images.min().item() >= 0 and found.images.max().item() <= 1):
        raise KdsecError(f"the search left its budget by {over:.2g}, or the range of pixels")
