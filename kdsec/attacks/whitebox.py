r"""Attacks by somebody who knows the defence: all of it, and how it was meant to work.

A defended model is still a model: ``nn.Sequential(purifier, classifier)`` has a gradient like any other, and
``strongest`` climbs it from several starts with two losses. Where a part has no useful gradient,
``PassThrough`` puts in another for the way back (BPDA); where a part is random, ``Averaged`` makes the attack
climb the mean (EOT). Both are models, so that every attack of this package can be pointed at them.

The evaluation advice of Carlini et al. 2019 (arXiv 1902.06705) and Tramer et al. 2020 (arXiv 2002.08347) is
followed throughout: the worst case per image over all that was tried, never the mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.ascent import Ball, climb, margin
from kdsec.attacks.evasion import check_attack, check_result
from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError, choose
from kdsec.train import autocast, evaluating, predict

LOSSES = ("cross-entropy", "margin")


def strongest(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 40,
    restarts: int = 2,
    losses: Sequence[str] = LOSSES,
    step_size: float | None = None,
    starts: Sequence[Tensor] = (),
    seed: int = 0,
    batch_size: int = 250,
    precision: str = "float32",
) -> Tensor:
    """PGD until it works: every start with every loss, on the images that still stand.

    An image that is misclassified as it is comes back unchanged; one that is fooled is left at its first
    success and takes no further part, so that the cost falls as the attack succeeds. An image that is never
    fooled comes back as the attempt that came nearest.

    This answers how often *this* model can be fooled. It is a poor way to make images for another one: those
    that have only just crossed this model's boundary seldom cross another's. For grey-box and transfer
    attacks take ``pgd``, which uses its whole budget to make the loss as large as it can.

    Args:
        model: attacked in eval mode, left in the mode it was in. For a defence, the *whole* of it.
        images: ``(N, C, H, W)`` in [0, 1], or bytes.
        labels: ``(N,)``.
        eps: radius, in pixels of [0, 1] for ``linf``.
        norm: ``linf`` or ``l2``.
        steps: of each climb.
        restarts: random starts, each with every loss.
        losses: of ``LOSSES``, in the order in which they are tried.
        step_size: 2.5 eps / steps if not given.
        starts: images to begin at before the random ones, another attack's results for instance; they are
            moved into the budget.
        seed: of the random starts.
        batch_size: images at a time.
        precision: as in ``Recipe``. What counts as fooled between the starts is decided in float32.

    Raises:
        KdsecError: a budget of 0 or outside its range, nothing to try, unknown names, images without labels.
    """
    check_attack(images, labels, eps, norm)
    check_budget(eps, steps)
    for loss in losses:
        choose("loss", loss, LOSSES)
    if not losses or restarts + len(starts) < 1:
        raise KdsecError(f"losses={tuple(losses)}, restarts={restarts}: give at least one of each")
    step = 2.5 * eps / steps if step_size is None else step_size
    generator = torch.Generator().manual_seed(seed)
    clean = to_float(images).float().contiguous(memory_format=torch.channels_last)
    found, logits = clean, predict(model, clean)
    best, stands = margin(logits, labels), logits.argmax(1) == labels
    for start, loss in itertools.product([*starts, *[None] * restarts], losses):
        left = stands.nonzero().squeeze(1)
        if not len(left):
            break
        for some in left.split(batch_size):
            ball = Ball(clean[some], eps, norm)
            begin = ball.random(generator) if start is None else ball.project(to_float(start)[some])
            objective = partial(_objective, model, loss, labels[some])
            with evaluating(model), torch.autocast(**autocast(precision, images.device)):
                tried = climb(objective, begin, ball, step, steps)
            logits = predict(model, tried)
            gained, standing = margin(logits, labels[some]), logits.argmax(1) == labels[some]
            better = (gained > best[some]) | ~standing
            found = found.index_copy(0, some[better], tried[better])
            best = best.index_copy(0, some[better], gained[better])
            stands = stands.index_copy(0, some, standing)
    check_result(found, clean, eps, norm)
    return found


def _objective(
    model: nn.Module, loss: str, labels: Tensor, images: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """What the attacker wants large, ``(n,)``, and which images are fooled already."""
    logits, wanted = model(images).float(), labels[which]
    gap = margin(logits, wanted)
    value = gap if loss == "margin" else F.cross_entropy(logits, wanted, reduction="none")
    return value, gap > 0


def check_budget(eps: float, steps: int) -> None:
    """Refuse an attack that is none."""
    if eps == 0:
        raise KdsecError("eps=0 is no attack; give a budget above 0, or use evaluate() for clean accuracy")
    if steps < 1:
        raise KdsecError(f"steps={steps}: an attack needs at least 1")


def worst_case(model: nn.Module, candidates: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Of each image the candidate that hurts ``model`` most, ``(N, C, H, W)``.

    An attacker may try everything: the accuracy on these images is what a defence really has.

    Args:
        model: the defended model.
        candidates: results of attacks on the same images, each ``(N, C, H, W)``.
        labels: ``(N,)``.

    Raises:
        KdsecError: no candidates, or of different shapes.
    """
    if len({tuple(images.shape) for images in candidates}) != 1:
        raise KdsecError(
            f"{len(candidates)} candidates of shapes {[tuple(images.shape) for images in candidates]}; "
            "give the results of at least one attack, all on the same images"
        )
    harm = torch.stack([margin(predict(model, images), labels) for images in candidates])
    every = torch.arange(len(labels), device=labels.device)
    return torch.stack([to_float(images) for images in candidates])[harm.argmax(0), every]


class PassThrough(nn.Module):
    r"""Backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420, section 4.1).

    Forwards it is ``module``; backwards its gradient is that of ``instead``, which should do about the same
    and be differentiable. For a rounding, the identity is the right choice. For a purifier that *is*
    differentiable it is the wrong one: the attack then ignores what the purifier does, and fails.

    Args:
        module: images in, images of the same shape out.
        instead: the same with a useful gradient; the identity if not given.
    """

    def __init__(self, module: nn.Module, instead: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module
        self.instead = nn.Identity() if instead is None else instead

    def forward(self, images: Tensor) -> Tensor:
        """Same values as ``module``, ``(N, C, H, W)``."""
        smooth = self.instead(images)
        if not (torch.is_grad_enabled() and smooth.requires_grad):
            return self.module(images)  # to the bit, which smooth + (made - smooth) would miss
        with torch.no_grad():
            made = self.module(images)
        return smooth + (made - smooth).detach()


class Averaged(nn.Module):
    r"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): a random model's mean answer.

    :math:`\log \frac{1}{R} \sum_r \sigma(f_r(x))` over R independent passes, in place of logits. The attack
    on one draw fits the noise of that draw; the attack on the mean fits the model.

    Args:
        model: images to logits, random in eval mode too.
        draws: R.

    Raises:
        KdsecError: no draws.
    """

    def __init__(self, model: nn.Module, draws: int = 20) -> None:
        super().__init__()
        if draws < 1:
            raise KdsecError(f"draws={draws} must be 1 or more; 20 is common")
        self.model = model
        self.draws = draws

    def extra_repr(self) -> str:
        """Show the setting in the printed model, which is what a fingerprint sees."""
        return f"draws={self.draws}"

    def forward(self, images: Tensor) -> Tensor:
        """Logarithms of mean probabilities, ``(N, K)``."""
        answers = torch.stack([self.model(images).float().log_softmax(1) for _ in range(self.draws)])
        return answers.logsumexp(0) - math.log(self.draws)
