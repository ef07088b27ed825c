"""Rejectors: classifiers that may refuse to answer, their threshold, and their evaluation.

A rejector gives each image a *decision* and a *score*; an input whose score is below a threshold is rejected.
The threshold comes from clean validation images and a stated false-rejection rate, and from nothing else. It
remembers these images and refuses to be evaluated on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.realised import ManipulationCheck
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.train import Score

MOST_LOST = 0.1  # accuracy that a baseline may lose and still be compared with
OVERLAP = 0.05  # largest share of evaluation images that the threshold may have been chosen on


class RejectorOutput(NamedTuple):
    """Predicted classes ``(N,)`` and their scores ``(N,)``, larger for more certain."""

    decision: Tensor
    score: Tensor


class Rejector(Protocol):
    """Anything with this method: images ``(N, C, H, W)``, in [0, 1] or uint8, to decisions and scores."""

    def predict_with_score(self, images: Tensor) -> RejectorOutput: ...


@dataclass(frozen=True, eq=False)
class Threshold:
    """Scores below ``value`` are rejected.

    Attributes:
        value: the threshold.
        rate: the false-rejection rate it was chosen for.
        measured: the rate it has on the images it was chosen on.
        images: a hash of each of those.
    """

    value: float
    rate: float
    measured: float
    images: frozenset[int]


@checked(labelled=["validation"])
def choose_threshold(rejector: Rejector, validation: ImageSet, rate: float) -> Threshold:
    """The largest threshold that rejects at most the share ``rate`` of the correctly classified images.

    Args:
        rejector: finished.
        validation: clean, labelled images that neither training nor evaluation uses.
        rate: allowed share of false rejections, from 0 to below 1.

    Raises:
        KdsecError: a rate out of range, or no image with a right decision.
    """
    if not 0 <= rate < 1:
        raise KdsecError(f"rate={rate} is not a share in [0, 1); 0.05 rejects one clean input in twenty")
    decision, score = rejector.predict_with_score(validation.images)
    right = score[decision == validation.labels]
    if not len(right):
        raise KdsecError(
            f"no image of {validation.name} is classified correctly; train the student before choosing a "
            "threshold"
        )
    # At most floor(rate * n) scores lie strictly below this one; ties are accepted.
    value = right.sort().values[int(rate * len(right))].item()
    measured = (right < value).double().mean().item()
    return Threshold(value, rate, measured, frozenset(_hashes(validation.images)))


class Clean(NamedTuple):
    """Cost of a rejector on clean images."""

    alone: Score  # right decisions of the student, without protection
    protected: Score  # right and accepted
    false_rejection: Score  # of the right ones, how many are rejected
    errors_rejected: Score  # of the wrong ones, how many are rejected


class Attacked(NamedTuple):
    """Attack successes without the rejector, with it, and the share of them that is rejected."""

    before: Score
    defended: Score
    rejected: Score


@checked(labelled=["data"])
def on_clean(rejector: Rejector, threshold: Threshold, data: ImageSet) -> Clean:
    """Cost on clean, labelled images.

    Raises:
        KdsecError: these are the images on which the threshold was chosen.
    """
    _check_unseen(threshold, data.images)
    decision, score = rejector.predict_with_score(data.images)
    right, accepted = decision == data.labels, score >= threshold.value
    return Clean(
        _share(right),
        _share(right & accepted),
        _share(~accepted[right]),
        _share(~accepted[~right]),
    )


@checked
def on_attack(
    rejector: Rejector,
    threshold: Threshold,
    images: Tensor,
    source_labels: Tensor,
    target_labels: Tensor | None = None,
) -> Attacked:
    """Effect on adversarial images.

    Args:
        rejector, threshold: the defence.
        images: ``(N, C, H, W)``.
        source_labels: what they really are, ``(N,)``.
        target_labels: what a targeted attack wanted, and nothing else is success; None counts every wrong
            decision.

    Raises:
        KdsecError: the threshold was chosen on these very images.
    """
    _check_unseen(threshold, images)
    decision, score = rejector.predict_with_score(images)
    fooled = decision != source_labels if target_labels is None else decision == target_labels
    accepted = score >= threshold.value
    return Attacked(_share(fooled), _share(fooled & accepted), _share(~accepted[fooled]))


class Worth(NamedTuple):
    """What a rejector costs and is worth, at a threshold chosen on validation images.

    Attributes:
        cost: shares of clean images: "accuracy alone", "accuracy left", "false rejection", "errors rejected".
        attacks: by kind of attack: the scores "before", "defended" and "caught"; if any image fools the
            student, "AUC" of the scores of right clean images against those of fooling ones, and "caught at
            the rate", the share caught where exactly the stated rate of right test images is rejected.
    """

    cost: dict[str, Score]
    attacks: dict[str, dict[str, float | Score]]


def measure(
    rejector: Rejector,
    rate: float,
    validation: ImageSet,
    test: ImageSet,
    attacks: Mapping[str, tuple[Tensor, Tensor, Tensor | None]],
) -> Worth:
    """Choose a threshold for ``rejector``, then measure it on clean and on adversarial images.

    Args:
        rejector: finished.
        rate: allowed share of false rejections on ``validation``.
        validation, test: clean, labelled images.
        attacks: kind to images, source labels and target labels, as in ``on_attack``.
    """
    threshold = choose_threshold(rejector, validation, rate)
    clean = on_clean(rejector, threshold, test)
    names = ("accuracy alone", "accuracy left", "false rejection", "errors rejected")
    worth = Worth(dict(zip(names, clean, strict=True)), {})
    output = rejector.predict_with_score(test.images)
    accepted = output.score[output.decision == test.labels]
    for kind, (images, source_labels, target_labels) in attacks.items():
        result = on_attack(rejector, threshold, images, source_labels, target_labels)
        facts: dict[str, float | Score] = dict(zip(("before", "defended", "caught"), result, strict=True))
        decision, score = rejector.predict_with_score(images)
        fooled = score[decision != source_labels if target_labels is None else decision == target_labels]
        if len(fooled) and len(accepted):
            facts["AUC"] = auc(accepted, fooled)
            facts["caught at the rate"] = (fooled < accepted.quantile(rate)).double().mean().item()
        worth.attacks[kind] = facts
    return worth


@checked(some=["high", "low"])
def auc(high: Tensor, low: Tensor) -> float:
    """Area under the ROC curve: the chance that a value of ``high`` is above one of ``low``, ties half."""
    gap = high.double()[:, None] - low.double()[None]
    return ((gap > 0).double() + (gap == 0).double() / 2).mean().item()


@checked
def check_baseline(accuracy: float, undefended: float) -> ManipulationCheck:
    """Whether a baseline kept its accuracy, to ``MOST_LOST``: one that did not is no baseline.

    Args:
        accuracy: of the baseline's decisions on clean images, before anything is rejected.
        undefended: of the student that it defends.
    """
    return ManipulationCheck("accuracy lost", undefended - accuracy, MOST_LOST, at_most=True)


def _share(which: Tensor) -> Score:
    return Score(int(which.sum()), len(which))


def _hashes(images: Tensor) -> list[int]:
    """One number for each image's pixels in bytes."""
    parts = [(to_float(part).float() * 255).round().to(torch.uint8) for part in images.split(1000)]
    return [hash(image.numpy().tobytes()) for part in parts for image in part.cpu()]


def _check_unseen(threshold: Threshold, images: Tensor) -> None:
    seen = sum(each in threshold.images for each in _hashes(images))
    if seen > OVERLAP * len(images):
        raise KdsecError(
            f"{seen} of {len(images)} images are among those that the threshold was chosen on; "
            "evaluate on others"
        )
