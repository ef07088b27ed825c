r"""Purification by distillation: an autoencoder in front of an unchanged classifier, taught by two others.

Koo, Chae & Lee, "Improving Adversarial Robustness via Distillation-Based Purification", Applied Sciences
13(20), 2023, doi:10.3390/app132011313.

**A reconstruction.** Only the abstract could be read, and no public code was found. It says: two
convolutional autoencoders, one trained adversarially and one normally, teach a third by ensemble knowledge
distillation, and the third cleans images in front of a pre-trained classifier. Architectures, losses, weights
and the training attack are this package's. What is left open is an option here.

With f the classifier, x a clean image, x' an attacked one and S a purifier, every arm is one of two losses,
with an attack from ``kdsec.defenses.perturbations``:

======================  ============================================================
adversarial teacher     ``Restore(ClassifierPGD(f, eps))``: x' back to x
normal teacher          ``Restore(Identity())``: x back to x
the paper's student     ``EnsembleDistillation(two_teacher_terms(g_a, g_n), ClassifierPGD(f, eps))``
student of one teacher  ``EnsembleDistillation((DistillationTerm(g_a),), ClassifierPGD(f, eps))``
student of none         ``Restore(ClassifierPGD(f, eps))``, on a network of the student's size
plain denoiser          ``Restore(Noise(0.1))``
end-to-end purifier     ``Restore(EndToEnd(f, eps), f, labels=1)``
======================  ============================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import Batch
from kdsec.defenses.perturbations import Perturbation
from kdsec.defenses.purifiers import encoder, frozen, purified
from kdsec.distill import attention_map
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice
from kdsec.logits import check_temperature, soft_cross_term
from kdsec.train import cross_entropy

VIEWS = ("attacked", "clean")
LEVELS = ("image", "features", "logits")
# What student and normal teacher look at in the second's lesson; the first's is about the attacked image.
READINGS = {
    "averaged": "the student at the attacked image, the normal teacher at the clean one",
    "each its own": "both at the clean image",
    "both attacked": "both at the attacked image",
}


@checked
@dataclass(frozen=True)
class Restore:
    r"""Give the clean image back; teachers, controls and the end-to-end purifier.

    .. math:: \mathcal{L} = \lambda_p \|g(x') - x\|^2 + \lambda_c \|g(x) - x\|^2
        + \lambda_y\, \mathrm{CE}(f(g(x')), y)

    Squared distances are means over pixels.

    Attributes:
        disturb: makes x'.
        classifier: f, needed for the labels' term only; frozen here in a copy.
        pixels, clean, labels: the three weights.
    """

    disturb: Perturbation
    classifier: nn.Module | None = None
    pixels: float = 1.0
    clean: float = 0.0
    labels: float = 0.0

    def __post_init__(self) -> None:
        check_weights(pixels=self.pixels, clean=self.clean, labels=self.labels)
        if self.classifier is not None:
            object.__setattr__(self, "classifier", frozen(self.classifier))
        elif self.labels:
            raise KdsecError(f"labels={self.labels:g} needs the classifier whose answers they judge; give it")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        clean, attacked = self.disturb(model, batch)
        made = purified(model, {"attacked": attacked} | ({"clean": clean} if self.clean else {}))
        loss = self.pixels * squared(made["attacked"], clean)
        if self.clean:
            loss = loss + self.clean * squared(made["clean"], clean)
        if self.labels and self.classifier is not None:
            loss = loss + self.labels * cross_entropy(self.classifier(made["attacked"]), batch.labels)
        return loss


@checked
@dataclass(frozen=True)
class DistillationTerm:
    """One teacher and what it teaches about: the student's output there should be the teacher's output.

    Attributes:
        teacher: a trained purifier; frozen in a copy.
        weight: above 0.
        teacher_sees, student_sees: ``attacked`` or ``clean``.
    """

    teacher: nn.Module
    weight: float = 0.5
    teacher_sees: str = "attacked"
    student_sees: str = "attacked"

    def __post_init__(self) -> None:
        check_choice("view", self.teacher_sees, VIEWS)
        check_choice("view", self.student_sees, VIEWS)
        if not self.weight > 0:
            raise KdsecError(f"weight={self.weight} of a term must be above 0; leave the term out instead")
        object.__setattr__(self, "teacher", frozen(self.teacher))


def two_teacher_terms(
    adversarial: nn.Module, normal: nn.Module, reading: str = "averaged", weight: float = 0.5
) -> tuple[DistillationTerm, DistillationTerm]:
    r"""The paper's two teachers, in one of ``READINGS``.

    Where the student sees x' in both lessons, as in ``averaged`` and ``both attacked``, the two squared
    distances are together, but for a constant, one distance from the *averaged* output:

    .. math:: w\|g(x') - g_a(x')\|^2 + (1-w)\|g(x') - g_n\|^2
        = \|g(x') - (w\,g_a(x') + (1-w)\,g_n)\|^2 + \mathrm{const}

    Args:
        adversarial, normal: g_a and g_n.
        reading: see ``READINGS``.
        weight: w of the adversarial teacher, in (0, 1); the normal one has the rest.

    Raises:
        KdsecError: unknown reading, or a weight that leaves a teacher nothing.
    """
    check_choice("reading", reading, READINGS)
    if not 0 < weight < 1:
        raise KdsecError(f"weight={weight} must be in (0, 1); for a single teacher give one DistillationTerm")
    teacher_sees = "attacked" if reading == "both attacked" else "clean"
    student_sees = "clean" if reading == "each its own" else "attacked"
    return DistillationTerm(adversarial, weight), DistillationTerm(
        normal, 1 - weight, teacher_sees, student_sees
    )


@checked
@dataclass(frozen=True)
class EnsembleDistillation:
    r"""Several teachers teach one purifier.

    .. math:: \mathcal{L} = \sum_i w_i\, d\big(g(u_i), g_i(v_i)\big) + \lambda \|g(x') - x\|^2,
        \qquad u_i, v_i \in \{x', x\}

    The distance d is taken between

    * ``image``: the images made, mean square over pixels;
    * ``features``: attention maps of the two encoders' outputs (as ``AttentionTransfer``: a student may be
      narrower than its teacher). It does not reach the decoder, which then needs the reconstruction term;
    * ``logits``: the classifier's answers to both, by relative entropy.

    Attributes:
        terms: who teaches what; see ``two_teacher_terms``.
        disturb: makes x'.
        reconstruction: lambda. At 0 no clean image is ever a target, only what the teachers make.
        level: see above.
        classifier: for ``logits`` only; frozen in a copy.
        temperature: of both softmaxes, for ``logits`` only.
    """

    terms: tuple[DistillationTerm, ...]
    disturb: Perturbation
    reconstruction: float = 0.0
    level: str = "image"
    classifier: nn.Module | None = None
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_temperature(self.temperature)
        check_weights(reconstruction=self.reconstruction)
        if not self.terms:
            raise KdsecError("an ensemble of no teachers; give a DistillationTerm, or train with Restore")
        if self.level == "features" and not self.reconstruction:
            raise KdsecError(
                "level 'features' alone would leave the decoder untrained; set reconstruction above 0"
            )
        if self.level == "logits" and self.classifier is None:
            raise KdsecError("level 'logits' compares the classifier's answers; give the classifier")
        if self.classifier is not None:
            object.__setattr__(self, "classifier", frozen(self.classifier))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        clean, attacked = self.disturb(model, batch)
        views = {"attacked": attacked, "clean": clean}
        seen = {lesson.student_sees for lesson in self.terms} | (
            {"attacked"} if self.reconstruction else set()
        )
        made = purified(model, {view: views[view] for view in VIEWS if view in seen})
        loss = attacked.new_zeros(())
        for lesson in self.terms:
            loss = loss + lesson.weight * self.gap(model, made, lesson, views)
        if self.reconstruction:
            loss = loss + self.reconstruction * squared(made["attacked"], clean)
        return loss

    def gap(
        self, model: nn.Module, made: dict[str, Tensor], lesson: DistillationTerm, views: dict[str, Tensor]
    ) -> Tensor:
        """How far the student is from one teacher."""
        asked = views[lesson.teacher_sees]
        if self.level == "features":
            with torch.no_grad():
                wanted = attention_map(encoder(lesson.teacher)(asked))
            given = attention_map(encoder(model)(views[lesson.student_sees]))
            if wanted.shape != given.shape:
                raise KdsecError(
                    "student and teacher squeeze images to different sizes; use level='image' for them"
                )
            return (given - wanted).square().sum(1).mean()
        with torch.no_grad():
            target = purified(lesson.teacher, {"asked": asked})["asked"]
        own = made[lesson.student_sees]
        if self.level == "image" or self.classifier is None:
            return squared(own, target)
        with torch.no_grad():
            answer = self.classifier(target)
        return soft_cross_term(self.classifier(own), answer, self.temperature)


def squared(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean over pixels of the squared distance, in float32."""
    return F.mse_loss(made.float(), wanted.float())


def check_weights(**weights: float) -> None:
    """Refuse negative weights, and weights that are all zero where there are several."""
    if not all(weight >= 0 for weight in weights.values()) or (
        len(weights) > 1 and not any(weights.values())
    ):
        given = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
        raise KdsecError(f"weights {given} must be 0 or more, and not all of them 0")
