"""Every protected teacher by name, all made alike, so that every thief can be set on every one.

A maker is a function of one ``Workshop`` and gives back a network in eval mode. Your own joins in one line,
``PROTECTED["mine"] = make_mine``; the closing chapter shows how, and its tables then have one more column.
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
from kdsec.defenses.sparse_teacher import SparseTeacherLoss, disturb, pair
from kdsec.defenses.stingy import Stingy
from kdsec.train import CrossEntropy


@dataclass(frozen=True)
class Strengths:
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
    reversal_temperature: float
    reversal_weight: float
    eps: float
    step_size: float
    steps: int
    robust_steps: int
    precision: str = "auto"


class Train(Protocol):
    """``train(arm, loss=None, images=None)``: a network trained like the normal teacher, but for these."""

    def __call__(
        self, arm: str, loss: Callable[..., Tensor] | None = None, images: ImageSet | None = None
    ) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class Workshop:
    """What the maker of a protected teacher has.

    Attributes:
        normal: the teacher without protection, in eval mode.
        train: trains another from the same initial weights, on the same images unless others are given.
        owner: these images, labelled.
        strengths: of all defences.
        once: ``once(label, make, *args, **options)``, for tensors that are made once and kept.
    """

    normal: nn.Module
    train: Train
    owner: ImageSet
    strengths: Strengths
    once: Callable[..., Any]


def smoothed(shop: Workshop) -> nn.Module:
    """Not meant as a protection; a yardstick."""
    return shop.train("smoothed", CrossEntropy(shop.strengths.smoothing))


def nasty(shop: Workshop) -> nn.Module:
    at = shop.strengths
    return shop.train("nasty", NastyLoss(shop.normal, at.nasty_temperature, at.nasty_weight))


def stingy(shop: Workshop) -> nn.Module:
    return Stingy(shop.normal, shop.strengths.stingy_keep)


def sparse(shop: Workshop) -> nn.Module:
    at = shop.strengths
    budget = {"eps": at.eps, "step_size": at.step_size, "steps": at.steps, "precision": at.precision}
    disturbed = shop.once("pgd", disturb, shop.normal, shop.owner, **budget)
    loss = SparseTeacherLoss(at.sparse_keep, at.sparse_temperature, at.sparse_alpha)
    return shop.train("AST", loss, pair(shop.owner, disturbed))


def reversed_by(reading: str) -> Callable[[Workshop], nn.Module]:
    """Reversed maximization in one of its readings."""

    def make(shop: Workshop) -> nn.Module:
        at = shop.strengths
        temperature, weight = at.reversal_temperature, at.reversal_weight
        loss = ReversedMaximizationLoss(shop.normal, reading, temperature, reversal_weight=weight)
        return shop.train(f"RML, {reading}", loss)

    return make


def robust(shop: Workshop) -> nn.Module:
    """Adversarially trained: a protection against other attackers, and a question here."""
    return shop.train("PGD-AT", PGDTraining(shop.strengths.eps, shop.strengths.robust_steps))


PROTECTED: dict[str, Callable[[Workshop], nn.Module]] = {
    "normal": lambda shop: shop.normal,
    "smoothed": smoothed,
    "nasty": nasty,
    "stingy": stingy,
    "AST": sparse,
    "RML, negate": reversed_by("negate"),
    "RML, uniform": reversed_by("uniform"),
    "PGD-AT": robust,
}
