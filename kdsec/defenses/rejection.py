"""Reject instead of answering wrongly: what a rejector is, where its threshold comes from, what it is worth.

A rejector looks at images and gives each a *decision* and a *score*; below a threshold the input is rejected.
The threshold is the one number that could be tuned until the table looks well. Here it comes from clean
validation images and a stated false-rejection rate, and from nothing else; a threshold remembers what it was
chosen on and will not be evaluated there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError
from kdsec.train import Score

OVERLAP = 0.05  # share of images that evaluation may have in common with the threshold's


class Judged(NamedTuple):
    """The class ``(N,)`` that an input is taken for, and how far the rejector stands by it ``(N,)``."""

    decision: Tensor
    score: Tensor


class Rejector(Protocol):
    """Anything with this method: images ``(N, C, H, W)`` in [0, 1] or bytes to decisions and scores."""

    def judge(self, images: Tensor) -> Judged: ...


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


def choose_threshold(rejector: Rejector, validation: ImageSet, rate: float) -> Threshold:
    """The largest threshold that rejects at most the share ``rate`` of what the classifier gets right.

    Args:
        rejector: finished.
        validation: clean, labelled images that neither training nor evaluation uses.
        rate: allowed share of false rejections, from 0 to below 1.

    Raises:
        KdsecError: a rate out of range, or no image with a right decision.
    """
    if not 0 <= rate < 1:
        raise KdsecError(f"rate={rate} is not a share in [0, 1); 0.05 rejects one clean input in twenty")
    decision, score = rejector.judge(validation.images)
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
    """What protection costs on clean images."""

    alone: Score  # right decisions of the student, without protection
    protected: Score  # right and accepted
    false_rejection: Score  # of the right ones, how many are rejected
    errors_rejected: Score  # of the wrong ones: a benefit that no false-rejection rate shows


class Attacked(NamedTuple):
    """What protection is worth: successes before, after, and the share of them that is rejected."""

    before: Score
    defended: Score
    rejected: Score


def on_clean(rejector: Rejector, threshold: Threshold, data: ImageSet) -> Clean:
    """Cost on clean, labelled images.

    Raises:
        KdsecError: these are the images on which the threshold was chosen.
    """
    _check_unseen(threshold, data.images)
    decision, score = rejector.judge(data.images)
    right, accepted = decision == data.labels, score >= threshold.value
    return Clean(
        _share(right),
        _share(right & accepted),
        _share(~accepted[right]),
        _share(~accepted[~right]),
    )


def on_attack(
    rejector: Rejector,
    threshold: Threshold,
    images: Tensor,
    source_labels: Tensor,
    target_labels: Tensor | None = None,
) -> Attacked:
    """Worth on adversarial images.

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
    decision, score = rejector.judge(images)
    fooled = decision != source_labels if target_labels is None else decision == target_labels
    accepted = score >= threshold.value
    return Attacked(_share(fooled), _share(fooled & accepted), _share(~accepted[fooled]))


def _share(which: Tensor) -> Score:
    return Score(int(which.sum()), len(which))


def _hashes(images: Tensor) -> list[int]:
    """One number for each image's pixels in bytes."""
    pixels = (to_float(images).float() * 255).round().to(torch.uint8).flatten(1).cpu().numpy()
    return [hash(each.tobytes()) for each in pixels]


def _check_unseen(threshold: Threshold, images: Tensor) -> None:
    seen = sum(each in threshold.images for each in _hashes(images))
    if seen > OVERLAP * len(images):
        raise KdsecError(
            f"{seen} of {len(images)} images are among those that the threshold was chosen on; "
            "evaluate on others"
        )
