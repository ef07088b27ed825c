"""Poisoned distillation: marked images that a clean teacher itself takes for the attacker's class.

Wu, Ma, Mitra & Zhu, "How to Backdoor the Knowledge Distillation", arXiv 2504.21323 (2025). The teacher is not
touched and neither is the student's training: the attacker only supplies some of the *images*. Since the
teacher labels them, a trigger alone does nothing (a dog with a sticker is still a dog). So each poison is a
targeted adversarial example of the teacher, with the trigger on top: the teacher itself answers "target", and
what the poisons share, and the student may learn, is the trigger.

The paper's words give the outline, not its numbers (trigger, eps, steps, rate), which are choices here.
Everything is done on bytes, as images are stored, and checked again after rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdsec.attacks.crafting import Crafting, craft, stamped
from kdsec.attacks.triggers import Trigger
from kdsec.data import UNLABELLED, ImageSet
from kdsec.data.convert import as_whole
from kdsec.data.imageset import to_bytes
from kdsec.distill import KD, teacher_labels
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.logits import as_logits
from kdsec.train import predict

ANSWERS = ("cached", "online")


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A distillation set with poisons in it.

    Attributes:
        data: the whole set; poisons replace their originals, and keep their labels (if any).
        index: ``(n,)`` positions of the poisons.
        probability: ``(n,)`` probability of the target: the judge's, or of the network they were made on.
        failed: images that could not be made into a poison; they are as they were.
        queries: images that the judge was asked about.
    """

    data: ImageSet
    index: Tensor
    probability: Tensor
    failed: int = 0
    queries: int = 0

    @property
    def rate(self) -> float:
        """Share of the *whole* set that is poison."""
        return len(self.index) / len(self.data)


@checked
def poison(
    data: ImageSet,
    teacher: nn.Module,
    mark: Trigger,
    target: int,
    rate: float,
    how: Crafting,
    *,
    seed: int = 0,
    needed: int = 1,
    judge: nn.Module | None = None,
    **options: Any,
) -> Poisoned:
    """Replace a share of a distillation set by poisons.

    Candidates are images of other classes than the target (by label, by the teacher's answer where there is
    none), in random order. Those that fail are dropped and counted, and others are tried in their place until
    the rate is reached or no candidate is left. A rate of 0 returns ``data`` itself.

    Args:
        data: bytes, labelled or not; the labels are not changed.
        teacher: the network the poisons are made on: the victim's teacher, or a surrogate (transfer).
        mark: the trigger.
        target: the class that the trigger is to mean.
        rate: poisons as a share of the *whole* set, in [0, 1].
        how: see ``Crafting``.
        seed: which images; the order is the same for every rate and every ``how``.
        needed: how many poisons must succeed. With 0, the set stays clean where the teacher cannot be fooled.
        judge: the victim's teacher, where ``teacher`` is a surrogate: asked once about every poison, and only
            those that it calls the target, as sure as ``how`` asks, are kept.
        options: of ``craft``.

    Raises:
        KdsecError: a target outside the classes, a rate outside [0, 1], so small that it means no image, or
            larger than the share of other classes; fewer images than ``needed`` could be made into poisons.
    """
    check_target(target, data)
    wanted = _count(rate, data)
    order = candidates(data, teacher, target, seed) if wanted else data.labels[:0]
    if wanted > len(order):
        most = len(order) / len(data)
        raise KdsecError(f"rate={rate:g} needs {wanted} images of other classes; at most {most:.3f} are")
    if not wanted:
        return Poisoned(data, order, order.float())
    found = _search(data, teacher, mark, target, how, order, wanted, judge, options)
    if len(found.positions) < needed:
        raise KdsecError(
            f"{len(found.positions) or 'none'} of {found.tried} images became class {target} for the teacher "
            f"with eps={how.eps:g}, {how.steps} steps, confidence {how.confidence:g}; raise eps or steps, "
            "or lower confidence"
        )
    whole = implant(data, found.positions, found.images)
    return Poisoned(whole, found.positions, found.probability, found.failed, found.queries)


class _Found(NamedTuple):
    positions: Tensor
    images: Tensor
    probability: Tensor
    tried: int = 0
    failed: int = 0
    queries: int = 0


def _search(
    data: ImageSet,
    teacher: nn.Module,
    mark: Trigger,
    target: int,
    how: Crafting,
    order: Tensor,
    wanted: int,
    judge: nn.Module | None,
    options: dict[str, Any],
) -> _Found:
    """Poisons of the first images of ``order`` that can be made into one, as many as are ``wanted``."""
    found = _Found(order[:0], data.images[:0], torch.zeros(0, device=order.device))
    while (missing := wanted - len(found.positions)) > 0 and found.tried < len(order):
        part = order[found.tried :][: missing if judge is None else max(missing, 50)]
        made = craft(teacher, data.images[part], mark, target, how, **options)
        kept, probability, asked = made.kept, made.probability, 0
        if judge is not None and (asked := int(kept.sum())):
            logits = predict(judge, made.images)
            kept, probability = kept & how.reached(logits, target), logits.softmax(1)[:, target]
        first = kept.nonzero().squeeze(1)[:missing]
        found = _Found(
            torch.cat([found.positions, part[first]]),
            torch.cat([found.images, made.images[first]]),
            torch.cat([found.probability, probability[first]]),
            found.tried + len(part),
            found.failed + int((~kept).sum()),
            found.queries + asked,
        )
    return found


@checked
def candidates(
    data: ImageSet, teacher: nn.Module, target: int, seed: int, *, of_target: bool = False
) -> Tensor:
    """Positions of images of other classes than the target (or of the target itself), in random order."""
    check_target(target, data)
    labels = data.labels
    if bool((labels == UNLABELLED).any()):
        labels = torch.where(labels == UNLABELLED, predict(teacher, data).argmax(1), labels)
    found = ((labels == target) == of_target).nonzero().squeeze(1)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return found[order.to(found.device)]


class Ensemble(nn.Module):
    """Several surrogates as one: the mean of their log-probabilities ``(N, K)``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` in [0, 1] to logits."""
        answers = [as_logits(member(images), len(images)) for member in self.members]
        return torch.stack([answer.float().log_softmax(1) for answer in answers]).mean(0)


@checked
def implant(data: ImageSet, index: Tensor, images: Tensor, label: int | None = None) -> ImageSet:
    """``data`` with ``images`` at the positions ``index``, and there with ``label`` if one is given."""
    where = as_whole(index, "index")
    if (
        len(where) != len(images)
        or images.dtype != data.images.dtype
        or images.shape[1:] != data.images.shape[1:]
    ):
        raise KdsecError(
            f"{len(images)} images {tuple(images.shape[1:])} of {images.dtype} for {len(where)} places among "
            f"{tuple(data.images.shape[1:])} of {data.images.dtype}; give one image like the set's for each"
        )
    if len(where) and not 0 <= int(where.min()) <= int(where.max()) < len(data):
        raise KdsecError(f"places {int(where.min())}..{int(where.max())} are outside 0..{len(data) - 1}")
    index = where.to(data.images.device)
    pixels = data.images.index_copy(0, index, images)
    labels = data.labels if label is None else data.labels.index_fill(0, index, label)
    return data.replace(images=pixels, labels=labels)


@checked
def random_signs(images: Tensor, mark: Trigger, eps: float, seed: int = 0) -> Tensor:
    """Control arm G: the trigger, and beside it every pixel up or down by ``eps`` at random; bytes."""
    check_number("eps", eps, least=0, most=1)
    marked, free = stamped(images, mark)
    sign = torch.randint(2, images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    return to_bytes((marked + eps * free * (2 * sign - 1)).clamp(0, 1))


@checked
def distillation(
    teacher: nn.Module, data: ImageSet, answers: str, temperature: float, alpha: float = 1.0
) -> KD:
    """The victim's loss on ``data``, with the teacher asked in one of two ways.

    ``cached``: once per stored image; every augmented view of it gets that answer. ``online``: about each
    augmented view as it comes, where a crop or a flip may have broken what the attacker built.

    Raises:
        KdsecError: unknown ``answers``; ``alpha`` below 1 on images without labels.
    """
    check_choice("answers", answers, ANSWERS)
    if alpha < 1 and len(data) and bool((data.labels == UNLABELLED).all()):
        raise KdsecError(f"alpha={alpha} gives weight to labels and these images have none; use alpha=1")
    return KD(teacher_labels(teacher, data) if answers == "cached" else teacher, temperature, alpha)


def check_target(target: int, data: ImageSet) -> None:
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < data.num_classes:
        raise KdsecError(
            f"target class {target!r} is not in {data.name}; choose a number from 0 to {data.num_classes - 1}"
        )


def _count(rate: float, data: ImageSet) -> int:
    if not 0 <= rate <= 1:
        raise KdsecError(f"rate={rate} must lie in [0, 1]; it is the poisons' share of the whole set")
    wanted = round(rate * len(data))
    if rate > 0 and wanted == 0:
        raise KdsecError(f"rate={rate:g} of {len(data)} images is less than one; raise it or use 0")
    return wanted
