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
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.evasion import Ball, autocast
from kdsec.attacks.triggers import Trigger, to_bytes
from kdsec.data import UNLABELLED, ImageSet
from kdsec.data.imageset import to_float
from kdsec.distill import KD, teacher_labels
from kdsec.errors import KdsecError, choose
from kdsec.train import predict

METHODS = ("fgsm", "pgd", "cw")
MODES = ("joint", "alternating", "unbounded")
ANSWERS = ("cached", "online")
LEVEL = 1 / 255  # one step of a byte


@dataclass(frozen=True)
class Crafting:
    """How a poison is made.

    Attributes:
        method: ``pgd``: signed gradient steps on the target's cross-entropy. ``fgsm``: one of them, of size
            ``eps``. ``cw``: steps on the margin of Carlini & Wagner (2017, arXiv 1608.04644, f_6), target's
            logit minus the largest other, with the L-infinity budget in place of their L2 penalty;
            ``confidence`` does what their kappa does.
        mode: ``joint``: the trigger stays in place while the rest is perturbed. ``alternating``: the paper's
            words, attack the image, put the trigger on top, and if the teacher no longer says "target" attack
            what came out, again and again; perturbation within ``eps`` of the original. ``unbounded``: the
            same with each attack within ``eps`` of where it *began*, so that ``rounds`` of them may add up.
        eps: L-infinity budget in pixels of [0, 1], rounded down to whole steps of a byte.
        step_size: of one gradient step.
        steps: gradient steps, of each round where there are rounds.
        rounds: of the alternating modes.
        confidence: teacher's probability of the target, at T = 1, that a poison must reach.
        stop_early: leave an image alone once it is there. If not, all ``steps`` are taken.
    """

    method: str = "pgd"
    mode: str = "joint"
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 20
    rounds: int = 10
    confidence: float = 0.5
    stop_early: bool = False

    def __post_init__(self) -> None:
        choose("crafting method", self.method, METHODS)
        choose("crafting mode", self.mode, MODES)
        if not LEVEL - 1e-6 <= self.eps <= 1:
            raise KdsecError(
                f"eps={self.eps:g} must lie in [1/255, 1]; less than one step of a byte is rounded away"
            )
        if self.steps < 1 or self.rounds < 1 or not self.step_size > 0:
            numbers = f"steps={self.steps}, rounds={self.rounds}, step_size={self.step_size:g}"
            raise KdsecError(f"{numbers}: crafting needs at least 1 step, 1 round and a step size above 0")
        if not 0 <= self.confidence < 1:
            raise KdsecError(f"confidence={self.confidence} is not a probability in [0, 1)")

    @property
    def radius(self) -> float:
        """``eps`` in whole steps of a byte: rounding cannot leave it."""
        return int(self.eps / LEVEL + 1e-4) * LEVEL

    @property
    def budget(self) -> float:
        """The largest change of a pixel beside the trigger."""
        return min(1.0, self.radius * (self.rounds if self.mode == "unbounded" else 1))

    def reached(self, logits: Tensor, target: int) -> Tensor:
        """``(B,)``: the teacher says "target", and is as sure of it as asked."""
        return (logits.argmax(1) == target) & (logits.softmax(1)[:, target] >= self.confidence)


@dataclass(frozen=True, eq=False)
class Crafted:
    """What became of a number of images.

    Attributes:
        images: ``(N, C, H, W)`` bytes, failures included.
        kept: ``(N,)``: after rounding, the teacher says "target" with the confidence asked for.
        probability: ``(N,)``: the teacher's probability of the target, after rounding.
        steps: ``(N,)``: gradient steps taken.
    """

    images: Tensor
    kept: Tensor
    probability: Tensor
    steps: Tensor


def craft(
    teacher: nn.Module,
    images: Tensor,
    mark: Trigger | None,
    target: int,
    how: Crafting,
    *,
    batch_size: int = 250,
    precision: str = "float32",
) -> Crafted:
    """Change ``images`` until ``teacher`` calls them ``target`` with the trigger on; nothing random in it.

    Args:
        teacher: attacked in eval mode; the victim's, or the attacker's own in its place (transfer).
        images: ``(N, C, H, W)`` bytes.
        mark: the trigger; None leaves it out (a plain targeted attack, control arm E).
        target: the attacker's class.
        how: see ``Crafting``.
        batch_size: images at a time.
        precision: of the gradients, as in ``Recipe``; the final check is in float32.

    Raises:
        KdsecError: images that are not bytes.
    """
    if images.dtype != torch.uint8:
        raise KdsecError(f"poisons are made of bytes, got {images.dtype}; give images as uint8")
    teacher.eval()
    search = _joint if how.mode == "joint" else _alternating
    found, taken = [], []
    with torch.autocast(**autocast(precision, images.device)):
        for part in images.split(batch_size):
            result, steps = search(teacher, part, mark, target, how)
            found.append(to_bytes(result))
            taken.append(steps)
    bytes_ = torch.cat(found) if found else images
    logits = predict(teacher, bytes_) if len(bytes_) else torch.zeros(0, target + 1, device=images.device)
    steps = torch.cat(taken) if taken else torch.zeros(0, dtype=torch.long, device=images.device)
    _check_budget(bytes_, images, mark, how)
    return Crafted(bytes_, how.reached(logits, target), logits.softmax(1)[:, target], steps)


def _joint(
    teacher: nn.Module, part: Tensor, mark: Trigger | None, target: int, how: Crafting
) -> tuple[Tensor, Tensor]:
    """Gradient steps beside the trigger, which is there from the start."""
    marked, free = _base(part, mark)
    return _towards(teacher, marked, Ball(marked, how.radius * free), target, how)


def _alternating(
    teacher: nn.Module, part: Tensor, mark: Trigger | None, target: int, how: Crafting
) -> tuple[Tensor, Tensor]:
    """Attack, put the trigger on, look; attack what came out where the teacher has changed its mind.

    The change is kept apart from the trigger, so that a blended trigger is not blended twice.
    """
    marked, free = _base(part, mark)
    result, taken = marked.clone(), torch.zeros(len(part), dtype=torch.long, device=part.device)
    # The first attack sees the image without the trigger.
    base = here = to_float(part)
    active = torch.arange(len(part), device=part.device)
    for _ in range(how.rounds):
        centre = here if how.mode == "unbounded" else base
        attacked, steps = _towards(teacher, here, Ball(centre, how.radius), target, how)
        taken[active] += steps
        base, change = marked[active], (attacked - base) * free
        here = (base + change).clamp(0, 1)
        result[active] = here
        with torch.no_grad():
            going = ~how.reached(teacher(here).float(), target)
        active, base, here = active[going], base[going], here[going]
        if not len(active):
            break
    return result, taken


def _base(part: Tensor, mark: Trigger | None) -> tuple[Tensor, Tensor]:
    """The images with the trigger, on the levels of a byte, and where they may be changed."""
    marked = to_float(mark.stamp(part) if mark else part).contiguous(memory_format=torch.channels_last)
    free = mark.free.to(part.device) if mark else torch.ones_like(marked[0])
    return marked, free


def _towards(
    teacher: nn.Module, start: Tensor, ball: Ball, target: int, how: Crafting
) -> tuple[Tensor, Tensor]:
    """Signed gradient steps towards ``target`` inside ``ball``; images that are there already stop."""
    steps, step = (1, how.radius) if how.method == "fgsm" else (how.steps, how.step_size)
    images, taken = start, torch.zeros(len(start), dtype=torch.long, device=start.device)
    active = torch.arange(len(start), device=start.device)
    for _ in range(steps):
        current = images[active].detach().requires_grad_()
        with torch.enable_grad():
            logits = teacher(current).float()
            (gradient,) = torch.autograd.grad(_gain(logits, target, how.method).sum(), current)
        going = ~how.reached(logits, target) if how.stop_early else torch.ones_like(active, dtype=torch.bool)
        active = active[going]
        if not len(active):
            break
        here = Ball(ball.centre[active], ball.eps)
        moved = here.project(current.detach()[going] + step * gradient[going].sign())
        images = images.index_copy(0, active, moved)
        taken[active] += 1
    return images, taken


def _gain(logits: Tensor, target: int, method: str) -> Tensor:
    """What grows as the teacher comes to say "target", ``(B,)``."""
    if method != "cw":
        return F.log_softmax(logits, dim=1)[:, target]
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.amax(1)


def _check_budget(found: Tensor, images: Tensor, mark: Trigger | None, how: Crafting) -> None:
    if not len(found):
        return
    marked, free = _base(images, mark)
    gap = (to_float(found) - marked).abs()
    allowed = how.budget * free + 1e-5
    if bool((gap > allowed).any()):
        raise KdsecError(f"crafting left its budget: {gap.max().item():.6f} with {how.budget:.6f} allowed")


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
        batch_size, precision: as in ``craft``.

    Raises:
        KdsecError: a target outside the classes, a rate outside [0, 1], so small that it means no image, or
            larger than the share of other classes; not one image could be made into a poison.
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
    if not len(chosen):
        raise KdsecError(
            f"none of {failed} images became class {target} for the teacher with eps={how.eps:g}, "
            f"{how.steps} steps, confidence {how.confidence:g}; raise eps or steps, or lower confidence"
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
    marked, free = _base(images, mark)
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
