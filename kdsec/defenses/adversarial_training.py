"""Adversarial training of the classifier itself: the rival that every purifier has to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.budgets import check_step, check_training_attack
from kdsec.data import UNLABELLED, Batch
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.pgd import PerturbationSet, label_objective, projected_ascent
from kdsec.train import cross_entropy, evaluating


@checked
@dataclass(frozen=True)
class PGDTraining:
    r"""Adversarial training (Madry et al. 2018, arXiv 1706.06083, eq. 2.1).

    .. math:: \min_f \; \mathbb E \max_{\|x' - x\|_\infty \le \varepsilon} \mathrm{CE}(f(x'), y)

    with the inner maximum replaced by what a few steps of PGD from a random start find.

    Attributes:
        eps: in pixels of [0, 1], above 0.
        steps: of PGD; the paper takes 7 on CIFAR-10.
        step_size: 2.5 eps / steps if not given, so that few steps use the whole budget, too.
    """

    eps: float
    steps: int = 7
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_training_attack(self.eps, self.steps, self.step_size)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        attacked = attack_batch(model, batch, self.eps, self.steps, self.step_size)
        return cross_entropy(model(attacked), batch.labels)


@checked
@dataclass(frozen=True)
class TRADES:
    r"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy and robustness as two terms.

    .. math:: \mathrm{CE}(f(x), y)
        + \beta \max_{\|x' - x\|_\infty \le \varepsilon}
        \mathrm{KL}\big(\sigma(f(x)) \,\|\, \sigma(f(x'))\big)

    The second term needs no labels: unlabelled images count only there. As in the authors' code
    the inner attack starts at the image plus noise of standard deviation 0.001, since at the image itself the
    divergence is at its lowest point and has no gradient.

    Attributes:
        eps: in pixels of [0, 1], above 0.
        beta: what robustness is worth (their 1 / lambda); 6 is common.
        steps: of the inner attack; theirs takes 10.
        step_size: 2.5 eps / steps if not given.
    """

    eps: float
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_training_attack(self.eps, self.steps, self.step_size)
        if not self.beta >= 0:
            raise KdsecError(f"beta={self.beta} must be 0 or more; 0 is plain training, 6 is common")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        attacked = self.attack(model, batch.images)
        clean, shifted = model(batch.images).float(), model(attacked).float()
        gap = F.kl_div(shifted.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
        return cross_entropy(clean, batch.labels) + self.beta * gap

    def attack(self, model: nn.Module, images: Tensor) -> Tensor:
        """Images within the budget whose answers are far from the clean ones' answers."""
        step = check_step(self.step_size, self.eps, self.steps)
        with evaluating(model):
            with torch.no_grad():
                wanted = model(images).float().log_softmax(1)

            def divergence(changed: Tensor, which: Tensor) -> tuple[Tensor, None]:
                shifted = model(changed).float().log_softmax(1)
                return F.kl_div(shifted, wanted[which], log_target=True, reduction="none").sum(1), None

            start = (images + 0.001 * torch.randn_like(images)).clamp(0, 1)
            return projected_ascent(divergence, start, PerturbationSet(images, self.eps), step, self.steps)


def attack_batch(
    model: nn.Module, batch: Batch, eps: float, steps: int, step_size: float | None = None
) -> Tensor:
    """PGD on one training batch: random start, in eval mode, without checks of what comes out.

    In eval mode, since batch normalisation must not learn from images on the way to the attack. Random
    numbers come from the global CPU generator, which ``fit`` seeds.
    """
    if bool((batch.labels == UNLABELLED).any()):
        raise KdsecError("this attack is on the label, and some images have none; give a labelled set")
    ball = PerturbationSet(batch.images, eps)
    step = check_step(step_size, eps, steps)
    with evaluating(model):
        start, objective = ball.random(torch.default_generator), label_objective(model, batch.labels)
        return projected_ascent(objective, start, ball, step, steps).detach()
