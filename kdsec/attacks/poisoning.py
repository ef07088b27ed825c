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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec.attacks.crafting import Crafting, craft, stamped
from kdsec.attacks.triggers import Trigger
from kdsec.data import UNLABELLED, ImageSet
from kdsec.data.imageset import to_bytes
from kdsec.distill import KD, teacher_labels
from kdsec.errors import KdsecError, choose
from kdsec.train import predict

ANSWERS = ("cached", "online")


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A distillation set with poisons in it.

    Attributes:
        data: the whole set; poisons stand where their originals stood, and keep their labels (if any).
        index: ``(n,)`` positions of the poisons.
        probability: ``(n,)`` probability of the target that the network they were made on gives them.
        failed: images that could not be made into a poison; they are as they were.
    """

    data: ImageSet
    index: Tensor
    probability: Tensor
    failed: int = 0

    @property
    def rate(self) -> float:
        """Share of the *whole* set that is poison."""
        return len(self.index) / len(self.data)


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
    batch_size: int = 250,
    precision: str = "float32",
) -> Poisoned:
    """Replace a share of a distillation set by poisons.

    Candidates are images of other classes than the target (by label, by the teacher's answer where there is
    none), in random order. Those that fail are dropped and counted, and others are tried in their place until
    the rate is reached or no candidate is left. A rate of 0 returns ``data`` itself.

    Args:
        data: bytes, labelled or not; the labels are not changed.
        teacher: the network the poisons are made on: the victim's teacher, or a surrogate (transfer).
        mark: the trigger.
        target: the class that the trigger shall mean.
        rate: poisons as a share of the *whole* set, in [0, 1].
        how: see ``Crafting``.
        seed: which images; the order is the same for every rate and every ``how``.
        needed: how many poisons must succeed. With 0, the set stays clean where the teacher cannot be fooled.
        batch_size, precision: as in ``craft``.

    Raises:
        KdsecError: a target outside the classes, a rate outside [0, 1], so small that it means no image, or
            larger than the share of other classes; fewer images than ``needed`` could be made into poisons.
    """
    check_target(target, data)
    wanted = _count(rate, data)
    nothing = torch.zeros(0, dtype=torch.long, device=data.images.device)
    if wanted == 0:
        return Poisoned(data, nothing, nothing.float())
    order = candidates(data, teacher, target, seed)
    if wanted > len(order):
        most = len(order) / len(data)
        raise KdsecError(f"rate={rate:g} needs {wanted} images of other classes; at most {most:.3f} are")
    index: list[Tensor] = []
    images: list[Tensor] = []
    probability: list[Tensor] = []
    failed = tried = 0
    while (missing := wanted - sum(len(part) for part in index)) > 0 and tried < len(order):
        part = order[tried : tried + missing]
        tried += len(part)
        made = craft(
            teacher, data.images[part], mark, target, how, batch_size=batch_size, precision=precision
        )
        failed += int((~made.kept).sum())
        index.append(part[made.kept])
        images.append(made.images[made.kept])
        probability.append(made.probability[made.kept])
    chosen = torch.cat(index)
    if len(chosen) < needed:
        raise KdsecError(
            f"{len(chosen) or 'none'} of {tried} images became class {target} for the teacher with "
            f"eps={how.eps:g}, {how.steps} steps, confidence {how.confidence:g}; raise eps or steps, or "
            "lower confidence"
        )
    return Poisoned(implant(data, chosen, torch.cat(images)), chosen, torch.cat(probability), failed)


def candidates(data: ImageSet, teacher: nn.Module, target: int, seed: int) -> Tensor:
    """Positions of images of other classes than the target, in random order."""
    labels = data.labels
    if bool((labels == UNLABELLED).any()):
        labels = torch.where(labels == UNLABELLED, predict(teacher, data).argmax(1), labels)
    others = (labels != target).nonzero().squeeze(1)
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    return others[order.to(others.device)]


def implant(data: ImageSet, index: Tensor, images: Tensor, label: int | None = None) -> ImageSet:
    """``data`` with ``images`` at the positions ``index``, and there with ``label`` if one is given."""
    pixels = data.images.index_copy(0, index, images)
    labels = data.labels if label is None else data.labels.index_fill(0, index, label)
    return data.replace(images=pixels, labels=labels)


def random_signs(images: Tensor, mark: Trigger, eps: float, seed: int = 0) -> Tensor:
    """Control arm G: the trigger, and beside it every pixel up or down by ``eps`` at random; bytes."""
    marked, free = stamped(images, mark)
    sign = torch.randint(2, images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    return to_bytes((marked + eps * free * (2 * sign - 1)).clamp(0, 1))


def distillation(
    teacher: nn.Module, data: ImageSet, answers: str, temperature: float, alpha: float = 1.0
) -> KD:
    """The victim's loss on ``data``, with the teacher asked in one of two ways.

    ``cached``: once per stored image; every augmented view of it gets that answer. ``online``: about each
    augmented view as it comes, where a crop or a flip may have broken what the attacker built.

    Raises:
        KdsecError: unknown ``answers``; ``alpha`` below 1 on images without labels.
    """
    choose("answers", answers, ANSWERS)
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
