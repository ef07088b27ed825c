r"""Attacks by somebody who knows the defence: all of it, and how it was meant to work.

A defended model is a model: ``nn.Sequential(purifier, classifier)`` has a gradient like any other, and
``adaptive_pgd`` climbs it from several starts with several losses. Where a part has no useful gradient,
``BPDA`` puts in another for the way back; where a part is random, ``EOT`` makes the attack climb the mean.
Both are models, so that every attack of this package can be pointed at them.

The evaluation advice of Carlini et al. 2019 (arXiv 1902.06705) and Tramer et al. 2020 (arXiv 2002.08347) is
followed throughout: the worst case per image over all that was tried, never the mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdsec.attacks.apgd import auto_ascent
from kdsec.budgets import (
    check_attack,
    check_classes,
    check_counts,
    check_images,
    check_labels,
    check_result,
    check_step,
    pixels,
)
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice
from kdsec.logits import as_logits, margin
from kdsec.pgd import LOSSES, GradientLog, PerturbationSet, label_objective, projected_ascent
from kdsec.train import PRECISIONS, autocast, evaluating, predict

DRAWS = 20  # passes whose mean judges a random model


@checked
def adaptive_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 40,
    restarts: int = 2,
    losses: Sequence[str] = LOSSES,
    starts: Sequence[Tensor] = (),
    seed: int = 0,
    batch_size: int = 250,
    precision: str = "float32",
) -> Tensor:
    """Auto-PGD until it works: every start with every loss, on the images that are not yet fooled.

    An image that is misclassified as it is comes back unchanged. One that is fooled is left at its first
    success, so that the cost falls as the attack succeeds. Any other comes back as the attempt that came
    nearest. A *random* model, one whose two passes differ, is fooled by luck, too: there every attempt is PGD
    that uses its whole budget (step 2.5 eps / steps), and the mean ``harm`` over 20 fresh passes decides.

    These images are made for *this* model: they seldom cross another one's boundary. For grey-box and
    transfer attacks take ``pgd``, which makes the loss as large as the budget allows.

    Args:
        model: for a defence, the *whole* of it.
        losses: of ``LOSSES``, in this order. ``targeted margin`` goes for another class at each start, the
            likeliest wrong one first (multi-targeted attack, Gowal et al. 2019, arXiv 1910.09338).
        starts: images to begin at before the random ones, moved into the budget.
        precision: of the climb; what counts as fooled between the attempts is decided in float32.
        images, labels, eps, norm, steps, restarts, seed, batch_size: as in ``pgd``.

    Raises:
        KdsecError: as ``pgd``; also a budget of 0, nothing to try, or an unknown loss.
    """
    labels = check_attack(images, labels, eps, norm)
    check_counts(steps=steps, batch_size=batch_size)
    check_choice("precision", precision, PRECISIONS)
    _check_attempts(eps, losses, restarts + len(starts))
    generator, log, clean = torch.Generator().manual_seed(seed), GradientLog(), pixels(images)
    order, draws = wrong_classes(model, clean, labels), DRAWS if is_random(model, clean) else 1
    climb = auto_ascent if draws == 1 else partial(projected_ascent, step=check_step(None, eps, steps))
    found, best = clean, harm(model, clean, labels, draws)
    for (number, start), loss in itertools.product(enumerate([*starts, *[None] * restarts]), losses):
        left = (best <= (0 if draws == 1 else math.inf)).nonzero().squeeze(1)
        for some in left.split(batch_size) if len(left) else ():
            ball = PerturbationSet(clean[some], eps, norm)
            begin = ball.random(generator) if start is None else ball.project(to_float(start)[some])
            rivals = order[some, number % order.shape[1]]
            objective = label_objective(model, labels[some], loss, rivals=rivals, stop_early=draws == 1)
            with evaluating(model), torch.autocast(**autocast(precision, images.device)):
                tried = climb(objective, begin, ball, steps=steps, log=log)
            gained = harm(model, tried, labels[some], draws)
            better = gained > best[some]
            found = found.index_copy(0, some[better], tried[better])
            best = best.index_copy(0, some[better], gained[better])
    check_result(found, clean, eps, norm)
    log.report()
    return found


def _check_attempts(eps: float, losses: Sequence[str], starts: int) -> None:
    """Refuse an attack without a budget or without an attempt."""
    if eps == 0:
        raise KdsecError("eps=0 is no attack; give a budget above 0, or use evaluate() for clean accuracy")
    for loss in losses:
        check_choice("loss", loss, LOSSES)
    if not losses or starts < 1:
        raise KdsecError(f"losses={tuple(losses)}, restarts={starts}: give at least one of each")


@checked
def wrong_classes(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Every class but the label, the likeliest first, ``(N, K - 1)``."""
    logits = predict(model, images)
    check_classes(int(labels.max()), logits)
    return logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]


@checked
def is_random(model: nn.Module, images: Tensor) -> bool:
    """Whether two passes over the first images differ by more than rounding."""
    first, second = (predict(model, images[:32]) for _ in range(2))
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3)


@checked
def harm(model: nn.Module, images: Tensor, labels: Tensor, draws: int = 1) -> Tensor:
    """The margin of ``model`` at ``labels``, ``(N,)``: above 0 where the label is not the answer.

    With several ``draws`` the mean over as many passes, of the margin between probabilities: on logits a
    single pass could outweigh all others.
    """
    if draws == 1:
        return margin(predict(model, images), labels)
    passes = [margin(predict(model, images).softmax(1), labels) for _ in range(draws)]
    return torch.stack(passes).mean(0)


@checked
def worst_case(model: nn.Module, candidates: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Of each image the candidate that hurts ``model`` most, ``(N, C, H, W)``.

    An attacker may try everything: the accuracy on these images is what a defence really has. For a random
    model, the mean over 20 passes decides; measure it on others (``mean_correct``).

    Args:
        model: the defended model.
        candidates: results of attacks on the same images, each ``(N, C, H, W)``.
        labels: ``(N,)``.

    Raises:
        KdsecError: no candidates, or of different shapes.
    """
    if not all(isinstance(images, Tensor) for images in candidates):
        raise KdsecError("candidates must be tensors of images (N, C, H, W), the results of attacks")
    if len({tuple(images.shape) for images in candidates}) != 1:
        raise KdsecError(
            f"{len(candidates)} candidates of shapes {[tuple(images.shape) for images in candidates]}; "
            "give the results of at least one attack, all on the same images"
        )
    labels = check_labels(candidates[0], labels)
    for images in candidates:
        check_images(images)
    check_classes(int(labels.max()), predict(model, candidates[0][:1]))
    draws = DRAWS if is_random(model, candidates[0]) else 1
    scores = torch.stack([harm(model, images, labels, draws) for images in candidates])
    every = torch.arange(len(labels), device=labels.device)
    return torch.stack([to_float(images) for images in candidates])[scores.argmax(0), every]


@checked
class BPDA(nn.Module):
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


@checked
class EOT(nn.Module):
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
        answers = torch.stack(
            [
                as_logits(self.model(images), len(images), values=False).float().log_softmax(1)
                for _ in range(self.draws)
            ]
        )
        return answers.logsumexp(0) - math.log(self.draws)
