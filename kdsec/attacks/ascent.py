"""What attacks on defended models, and defences trained on attacks, climb with: any objective, any model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdsec.attacks.evasion import Ball, length

# Images (n, C, H, W) and their places in the batch (n,) to what is to become large (n,), and which of the
# images need no more changes (n,), or None where all go on to the end.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def climb(objective: Objective, start: Tensor, ball: Ball, step: float, steps: int) -> Tensor:
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
        current = images[active].detach().requires_grad_()
        with torch.enable_grad():
            value, settled = objective(current, active)
            # A sum, so that no image's gradient depends on the others or is divided by their number.
            (gradient,) = torch.autograd.grad(value.sum(), current)
        if settled is not None and bool(settled.any()):
            active, current, gradient = active[~settled], current[~settled], gradient[~settled]
            if not len(active):
                break
        unit = gradient.sign() if ball.norm == "linf" else gradient / length(gradient).clamp(min=1e-12)
        here = Ball(ball.centre[active], ball.eps, ball.norm)
        images = images.index_copy(0, active, here.project(current.detach() + step * unit))
    return images


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
