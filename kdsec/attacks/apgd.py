r"""Auto-PGD, projected ascent that halves its own step (Croce & Hein 2020, arXiv 2003.01690, section 3).

.. math:: z = \Pi\big(x_k + \eta\, d(\nabla \mathcal L(x_k))\big), \qquad
    x_{k+1} = \Pi\big(x_k + \alpha\,(z - x_k) + (1-\alpha)\,(x_k - x_{k-1})\big), \quad \alpha = 0.75

The step :math:`\eta` begins at 2 eps. At each checkpoint it is halved for the images that stopped improving,
and these go on from their best iterate. Here they go on without momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kdsec.pgd import GradientLog, Objective, PerturbationSet, direction, input_gradient

ALPHA = 0.75  # share of the new direction; the rest is momentum
RHO = 0.75  # share of steps between two checkpoints that must improve


def checkpoints(steps: int) -> list[int]:
    """Steps at which the step size is looked at, 0 first; equation (3) of the paper."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * steps - 1e-9) for share in shares})


@dataclass
class _Climb:
    """What is known of each image that still climbs; all ``(n,)`` but images, gradients and steps.

    Attributes:
        active: its place among all images.
        now, before, best: the iterate, the one before it, and the best so far.
        gradient, slope: at ``now`` and at ``best``.
        step: eta.
        peak, last: the objective at ``best`` and at ``before``.
        mark: ``peak`` at the last checkpoint.
        rises: how often the objective has risen since then.
        halved: whether the step was halved there.
    """

    active: Tensor
    now: Tensor
    before: Tensor
    best: Tensor
    gradient: Tensor
    slope: Tensor
    step: Tensor
    peak: Tensor
    last: Tensor
    mark: Tensor
    rises: Tensor
    halved: Tensor

    def keep(self, which: Tensor) -> None:
        """Go on with the images where the mask ``which`` is true."""
        vars(self).update({name: part[which] for name, part in vars(self).items()})

    def look(self, value: Tensor, gradient: Tensor, done: Tensor | None) -> None:
        """Take in the objective at ``now``; of images that are done, ``now`` is the best."""
        higher = value > self.peak
        self.rises, self.last = self.rises + (value > self.last), value
        self.peak = torch.where(higher, value, self.peak)
        self.slope, self.gradient = _choose(higher, gradient, self.slope), gradient
        self.best = _choose(higher if done is None else higher | done, self.now, self.best)

    def halve(self, span: int) -> None:
        """At a checkpoint ``span`` steps after the last: a smaller step, from the best, where it is stuck."""
        stuck = (self.rises < RHO * span) | (~self.halved & (self.peak <= self.mark))
        self.step, self.now = _choose(stuck, self.step / 2, self.step), _choose(stuck, self.best, self.now)
        self.before = _choose(stuck, self.best, self.before)
        self.gradient = _choose(stuck, self.slope, self.gradient)
        self.rises, self.halved, self.mark = torch.zeros_like(self.rises), stuck, self.peak

    def move(self, ball: PerturbationSet, share: float) -> None:
        """One step, of which ``share`` is new and the rest momentum."""
        ahead = ball.project(self.now + self.step * direction(self.gradient, ball.norm))
        moved = self.now + share * (ahead - self.now) + (1 - share) * (self.now - self.before)
        self.now, self.before = ball.project(moved), self.now


def auto_ascent(
    objective: Objective,
    start: Tensor,
    allowed: PerturbationSet,
    steps: int,
    log: GradientLog | None = None,
) -> Tensor:
    """Maximise a deterministic ``objective`` from ``start``; the best iterates ``(N, C, H, W)``.

    An image that is done comes back as it is then, and leaves the batch. Arguments as in
    ``kdsec.pgd.projected_ascent``; ``steps`` moves cost one forward and backward pass each, and one more.
    """
    found, every = start.clone(), torch.arange(len(start), device=start.device)
    step = 2 * allowed.eps * torch.ones_like(every)[:, None, None, None]
    low = torch.full((len(start),), -math.inf, device=start.device)
    none, true = torch.zeros_like(low), torch.ones_like(low, dtype=torch.bool)
    climb = _Climb(every, start, start, start, start, start, step, low, -low, low, none, true)
    spans = {end: end - begin for begin, end in pairwise(checkpoints(steps))}
    for number in range(steps + 1):
        current = climb.now.detach().requires_grad_()
        with torch.enable_grad():
            value, done = objective(current, climb.active)
            gradient = input_gradient(value, current)
        if log is not None and number == 0:
            log.add(gradient)
        climb.look(value.detach(), gradient, done)
        found = found.index_copy(0, climb.active, climb.best)
        if done is not None and bool(done.any()):
            climb.keep(~done)
            if not len(climb.active):
                break
        if number in spans:
            climb.halve(spans[number])
        ball = allowed.rows(climb.active) if len(climb.active) < len(start) else allowed
        climb.move(ball, ALPHA if number else 1.0)
    return found


def _choose(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """For each image ``yes`` or ``no``."""
    return torch.where(which[:, None, None, None], yes, no)
