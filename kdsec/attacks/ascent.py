"""What attacks on defended models, and defences trained on attacks, climb with: any objective, any model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Images (n, C, H, W) and their places in the batch (n,) to what is to become large (n,), and which of the
# images need no more changes (n,), or None where all go on to the end.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Ball:
    """The images allowed around ``centre``: at most ``eps`` off in ``norm``, pixels from ``low`` to ``high``.

    ``eps``, and ``low`` with ``high``, are numbers, or tensors that broadcast to the images.
    """

    centre: Tensor
    eps: Any
    norm: str = "linf"
    low: Any = 0.0
    high: Any = 1.0

    def project(self, images: Tensor) -> Tensor:
        """The allowed image nearest to each (for L2, nearest in the ball and then in the box)."""
        change = images - self.centre
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / length(change).clamp(min=1e-12)).clamp(max=1)
        return (self.centre + change).clamp(self.low, self.high)

    def random(self, generator: torch.Generator) -> Tensor:
        """A uniformly random image of the ball, then moved into the box."""
        noise = torch.empty(self.centre.shape)
        if self.norm == "linf":
            noise.uniform_(-1, 1, generator=generator)
        else:
            noise.normal_(generator=generator)
            radius = torch.rand(len(noise), 1, 1, 1, generator=generator) ** (1 / noise[0].numel())
            noise *= radius / length(noise)
        return self.project(self.centre + self.eps * noise.to(self.centre.device))


def climb(objective: Objective, start: Tensor, ball: Ball, step: float | Tensor, steps: int) -> Tensor:
    """Projected gradient ascent on ``objective`` from ``start``; ``(B, C, H, W)``, inside ``ball``.

    Images that the objective calls settled are left as they are and dropped from the batch, so that the rest
    of the steps cost only what the others need. One forward and one backward pass a step, and the backward
    pass computes gradients for the images alone, not for the weights.

    Args:
        objective: see ``Objective``.
        start: where to begin.
        ball: what is allowed.
        step: length of a step, in pixels of [0, 1] (L-infinity) or as an L2 norm.
        steps: how many.
    """
    images, active = start, torch.arange(len(start), device=start.device)
    for _ in range(steps):
        everyone = len(active) == len(start)
        current = (images if everyone else images[active]).detach().requires_grad_()
        with torch.enable_grad():
            value, settled = objective(current, active)
            # A sum, so that no image's gradient depends on the others or is divided by their number.
            (gradient,) = torch.autograd.grad(value.sum(), current)
        if settled is not None and bool(settled.any()):
            active, current, gradient = active[~settled], current[~settled], gradient[~settled]
            everyone = False
            if not len(active):
                break
        unit = gradient.sign() if ball.norm == "linf" else gradient / length(gradient).clamp(min=1e-12)
        here = ball if everyone else dataclasses.replace(ball, centre=ball.centre[active])
        moved = here.project(current.detach() + step * unit)
        images = moved if everyone else images.index_copy(0, active, moved)
    return images


def length(change: Tensor) -> Tensor:
    """L2 norm of each image, ``(N, 1, 1, 1)``."""
    return change.flatten(1).norm(dim=1)[:, None, None, None]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The largest wrong logit minus the right one, ``(N,)``: above 0 where the label is not the answer.

    :math:`\max_{j \ne y} z_j - z_y`, after Carlini & Wagner 2017 (arXiv 1608.04644, section V.A, f_6). Unlike
    the cross-entropy it has no softmax that could saturate: where a network is very sure, the cross-entropy's
    gradient is rounded to zero and this one's is not.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` in 0..K-1.
    """
    own = logits.gather(1, labels[:, None])
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True) - own).squeeze(1)
