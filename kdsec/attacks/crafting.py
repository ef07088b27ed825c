"""Crafting: images that a network calls by the attacker's class while they carry the trigger.

The building block of ``kdsec.attacks.poisoning``. Everything is done on bytes, as images are stored, and
checked again after rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.triggers import Trigger
from kdsec.data import Augment
from kdsec.data.imageset import to_bytes, to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.logits import margin
from kdsec.pgd import PerturbationSet, answer, projected_ascent
from kdsec.train import autocast, evaluating, predict

METHODS = ("fgsm", "pgd", "cw")
MODES = ("joint", "alternating", "unbounded")
LEVEL = 1 / 255  # one step of a byte


@checked
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
        confidence: teacher's probability of the target, at tau = 1, that a poison must reach.
        stop_early: leave an image alone once it is there. If not, all ``steps`` are taken.
        views: for a victim who asks the teacher about augmented images. 0: the stored pixels are attacked.
            Else each gradient is the mean over the stored pixels and this many random crops and flips of them
            (expectation over transformation, Athalye et al. 2018, arXiv 1707.07397).
        augment: what the victim is expected to do to the images; its ``cutout`` is not followed.
        spread: share of the pixels, drawn for each image, that may be changed (``joint`` only). Below 1 the
            perturbations vary from poison to poison, and only the trigger is common to all.
    """

    method: str = "pgd"
    mode: str = "joint"
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 20
    rounds: int = 10
    confidence: float = 0.5
    stop_early: bool = False
    views: int = 0
    augment: Augment = Augment()  # noqa: RUF009 (immutable)
    spread: float = 1.0

    def __post_init__(self) -> None:
        check_choice("crafting method", self.method, METHODS)
        check_choice("crafting mode", self.mode, MODES)
        if not LEVEL - 1e-6 <= self.eps <= 1:
            raise KdsecError(
                f"eps={self.eps:g} must lie in [1/255, 1]; less than one step of a byte is rounded away"
            )
        if self.steps < 1 or self.rounds < 1 or not self.step_size > 0:
            numbers = f"steps={self.steps}, rounds={self.rounds}, step_size={self.step_size:g}"
            raise KdsecError(f"{numbers}: crafting needs at least 1 step, 1 round and a step size above 0")
        if self.views < 0 or (self.views and not (self.augment.crop or self.augment.flip)):
            raise KdsecError(
                f"views={self.views} needs an augmentation to follow; give augment a crop or a flip"
            )
        if not 0 <= self.confidence < 1:
            raise KdsecError(f"confidence={self.confidence} is not a probability in [0, 1)")
        check_number("spread", self.spread, above=0, most=1)
        if self.spread < 1 and self.mode != "joint":
            raise KdsecError(f"spread={self.spread:g} needs mode='joint', not {self.mode!r}")

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


@checked
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
    """Change ``images`` until ``teacher`` calls them ``target`` with the trigger on.

    The same images always become the same poisons: the views, the one thing drawn, have a fixed seed.

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
    if len(images):
        classes = predict(teacher, images[:1]).shape[1]
        if not 0 <= target < classes:
            raise KdsecError(f"target={target} is not a class of the teacher, 0 to {classes - 1}")
    search = _joint if how.mode == "joint" else _alternating
    found, taken = [], []
    with evaluating(teacher), torch.autocast(**autocast(precision, images.device)):
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
    marked, free = stamped(part, mark)
    if how.spread < 1:
        free = free * torch.stack([_some_pixels(image, how.spread) for image in part])
    return _towards(teacher, marked, PerturbationSet(marked, how.radius * free), target, how)


def _some_pixels(image: Tensor, share: float) -> Tensor:
    """``(1, H, W)``: 1 at a share of the pixels, drawn from the image's own bytes."""
    generator = torch.Generator().manual_seed(int(image.long().sum()))
    return (torch.rand(1, *image.shape[1:], generator=generator) < share).float().to(image.device)


def _alternating(
    teacher: nn.Module, part: Tensor, mark: Trigger | None, target: int, how: Crafting
) -> tuple[Tensor, Tensor]:
    """Attack, put the trigger on, look; attack what came out where the teacher has changed its mind.

    The change is kept apart from the trigger, so that a blended trigger is not blended twice.
    """
    marked, free = stamped(part, mark)
    result, taken = marked.clone(), torch.zeros(len(part), dtype=torch.long, device=part.device)
    # The first attack sees the image without the trigger.
    base = here = to_float(part)
    active = torch.arange(len(part), device=part.device)
    for _ in range(how.rounds):
        centre = here if how.mode == "unbounded" else base
        attacked, steps = _towards(teacher, here, PerturbationSet(centre, how.radius), target, how)
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


def stamped(part: Tensor, mark: Trigger | None) -> tuple[Tensor, Tensor]:
    """The images with the trigger, on the levels of a byte, and where they may be changed."""
    marked = to_float(mark.stamp(part) if mark else part).contiguous(memory_format=torch.channels_last)
    free = mark.free.to(part.device) if mark else torch.ones_like(marked[0])
    return marked, free


def _towards(
    teacher: nn.Module, start: Tensor, allowed: PerturbationSet, target: int, how: Crafting
) -> tuple[Tensor, Tensor]:
    """Signed gradient steps towards ``target``, and the number of steps of each image."""
    steps, step = (1, how.radius) if how.method == "fgsm" else (how.steps, how.step_size)
    taken = torch.zeros(len(start), dtype=torch.long, device=start.device)
    generator = torch.Generator().manual_seed(0)

    def objective(images: Tensor, which: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = answer(teacher, images)
        gain = _gain(logits, target, how.method)
        for _ in range(how.views):
            gain = gain + _gain(answer(teacher, view(images, how.augment, generator)), target, how.method)
        done = how.reached(logits, target) if how.stop_early else None
        taken[which if done is None else which[~done]] += 1
        return gain, done

    return projected_ascent(objective, start, allowed, step, steps), taken


def view(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """All images cropped and flipped alike, as training does it but with a gradient."""
    pad = augment.crop
    top, left = torch.randint(2 * pad + 1, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    seen = F.pad(images, (pad, pad, pad, pad))[:, :, top : top + height, left : left + width]
    if augment.flip and torch.rand((), generator=generator) < 0.5:
        seen = seen.flip(3)
    return seen.contiguous(memory_format=torch.channels_last)


def _gain(logits: Tensor, target: int, method: str) -> Tensor:
    """What grows as the teacher comes to say "target", ``(B,)``."""
    if method != "cw":
        return F.log_softmax(logits, dim=1)[:, target]
    return -margin(logits, logits.new_full((len(logits),), target, dtype=torch.long))


def _check_budget(found: Tensor, images: Tensor, mark: Trigger | None, how: Crafting) -> None:
    if not len(found):
        return
    marked, free = stamped(images, mark)
    gap = (to_float(found) - marked).abs()
    allowed = how.budget * free + 1e-5
    if bool((gap > allowed).any()):
        raise KdsecError(f"crafting left its budget: {gap.max().item():.6f} with {how.budget:.6f} allowed")
