"""Every protected teacher by name, all made alike, so that every extraction attack can be run on every one.

``DEFENSES[name]`` is a function of one ``DefenseContext`` that returns a network in eval mode. Register your
own by one line, ``DEFENSES["mine"] = make_mine``; the closing chapter shows how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.defenses.adversarial_training import PGDTraining
from kdsec.defenses.nasty import NastyLoss
from kdsec.defenses.reversed_maximization import ReversedMaximizationLoss
from kdsec.defenses.sparse_teacher import SparseTeacherLoss, pair, perturb
from kdsec.defenses.stingy import Stingy
from kdsec.train import CrossEntropy


@dataclass(frozen=True)
class DefenseStrength:
    """How strongly each defence is applied.

    Attributes:
        smoothing: of the labels.
        nasty_temperature, nasty_weight: tau and omega of the nasty teacher.
        stingy_keep: logits that the stingy teacher answers with.
        sparse_keep, sparse_temperature, sparse_alpha: n, tau and omega of AST.
        reversal_temperature, reversal_weight: tau and omega of reversed maximization.
        eps: of AST's adversarial images and of adversarial training, in pixels of [0, 1].
        step_size, steps: of AST's projected gradient descent.
        robust_steps: of that of adversarial training.
        precision: of AST's adversarial images, as in ``Recipe``.
    """

    smoothing: float
    nasty_temperature: float
    nasty_weight: float
    stingy_keep: int
    sparse_keep: int
    sparse_temperature: float
    sparse_alpha: float
    eps: float
    step_size: float
    steps: int
    reversal_temperature: float = 4.0
    reversal_weight: float = 1.0
    robust_steps: int = 3
    precision: str = "auto"

    @classmethod
    def headline(cls, settings: Any, precision: str, **reversal: Any) -> DefenseStrength:
        """Of a chapter's headline teachers: its settings of the same names, the first of several."""
        return cls(
            smoothing=settings.smoothing,
            nasty_temperature=settings.nasty_temperature,
            nasty_weight=settings.nasty_weights[0],
            stingy_keep=settings.stingy_keep,
            sparse_keep=settings.sparse_keep,
            sparse_temperature=settings.sparse_temperature,
            sparse_alpha=settings.sparse_alphas[0],
            eps=settings.eps,
            step_size=settings.step_size,
            steps=settings.pgd_steps,
            precision=precision,
            **reversal,
        )


class Train(Protocol):
    """``train(arm, loss=None, images=None)``: a network trained like the normal teacher, but for these."""

    def __call__(
        self, arm: str, loss: Callable[..., Tensor] | None = None, images: ImageSet | None = None
    ) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class DefenseContext:
    """What a function in ``DEFENSES`` gets.

    Attributes:
        normal: the teacher without protection, in eval mode.
        train: trains another from the same initial weights, on the same images unless others are given.
        owner: these images, labelled.
        strengths: of all defences.
        cached: ``cached(label, make, *args, **options)``, for tensors that are made once and kept.
    """

    normal: nn.Module
    train: Train
    owner: ImageSet
    strengths: DefenseStrength
    cached: Callable[..., Any]


def smoothed(context: DefenseContext) -> nn.Module:
    """Label smoothing: no protection, for comparison."""
    return context.train("smoothed", CrossEntropy(context.strengths.smoothing))


def nasty(context: DefenseContext) -> nn.Module:
    at = context.strengths
    return context.train("nasty", NastyLoss(context.normal, at.nasty_temperature, at.nasty_weight))


def stingy(context: DefenseContext) -> nn.Module:
    return Stingy(context.normal, context.strengths.stingy_keep)


def sparse(context: DefenseContext) -> nn.Module:
    at = context.strengths
    budget = {"eps": at.eps, "step_size": at.step_size, "steps": at.steps, "precision": at.precision}
    disturbed = context.cached("pgd", perturb, context.normal, context.owner, **budget)
    loss = SparseTeacherLoss(at.sparse_keep, at.sparse_temperature, at.sparse_alpha)
    return context.train("AST", loss, pair(context.owner, disturbed))


def reversed_by(reading: str) -> Callable[[DefenseContext], nn.Module]:
    """Reversed maximization in one of its readings."""

    def make(context: DefenseContext) -> nn.Module:
        at = context.strengths
        temperature, weight = at.reversal_temperature, at.reversal_weight
        loss = ReversedMaximizationLoss(context.normal, reading, temperature, reversal_weight=weight)
        return context.train(f"RML, {reading}", loss)

    return make


def robust(context: DefenseContext) -> nn.Module:
    """Adversarially trained: a protection against evasion, here for comparison."""
    return context.train("PGD-AT", PGDTraining(context.strengths.eps, context.strengths.robust_steps))


DEFENSES: dict[str, Callable[[DefenseContext], nn.Module]] = {
    "normal": lambda context: context.normal,
    "smoothed": smoothed,
    "nasty": nasty,
    "stingy": stingy,
    "AST": sparse,
    "RML, negate": reversed_by("negate"),
    "RML, uniform": reversed_by("uniform"),
    "PGD-AT": robust,
}


def shadow(
    defense: Callable[[DefenseContext], nn.Module],
    train: Callable[..., nn.Module],
    strengths: DefenseStrength,
    cached: Callable[..., Any],
) -> Callable[[ImageSet], tuple[nn.Module, nn.Module]]:
    """Rebuilds a defence on other images, for ``kdsec.attacks.recovery``: an honest and a protected teacher.

    Args:
        defense: one of ``DEFENSES``.
        train: ``train(arm, images, loss)``, a network trained from scratch.
        strengths, cached: as in ``DefenseContext``.
    """

    def rebuild(own: ImageSet) -> tuple[nn.Module, nn.Module]:
        def again(
            arm: str, loss: Callable[..., Tensor] | None = None, images: ImageSet | None = None
        ) -> nn.Module:
            return train(arm, own if images is None else images, loss)

        honest = again("normal")
        return honest, defense(DefenseContext(honest, again, own, strengths, cached))

    return rebuild
