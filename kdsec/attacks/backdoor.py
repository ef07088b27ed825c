"""What a backdoor is, in numbers: the one place where the success of a trigger is measured.

Success counts images whose true class is *not* the target, with the trigger and nothing else: no adversarial
perturbation, which would measure the transfer of an adversarial example instead of a backdoor. It never
stands alone: beside it belong the share that is taken for the target *without* trigger (the floor, which is
not 1/K), and what a student distilled on clean images does on the same trigger.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsec.attacks.poisoning import check_target
from kdsec.attacks.similarity import ssim
from kdsec.attacks.triggers import Trigger
from kdsec.budgets import check_classes
from kdsec.data import Augment, ImageSet, Loader
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.train import Score, predict

SUCCESS, FLOOR = "attack success", "false-target rate"


@checked
def others(data: ImageSet, target: int) -> ImageSet:
    """The images whose class is not the target.

    Raises:
        KdsecError: the target is not one of the classes, or there are no other images.
    """
    check_target(target, data)
    rest = data.subset((data.labels != target).nonzero().squeeze(1))
    if not len(rest):
        raise KdsecError(
            f"{data.name} holds nothing but class {target}; success needs images of other classes"
        )
    return rest


@checked
def taken_for(model: nn.Module, images: Tensor, target: int) -> Score:
    """How many of ``images`` the model calls ``target``."""
    check_number("target", target, least=0, whole=True)
    logits = predict(model, images)
    check_classes(target, logits)
    return Score(int((logits.argmax(1) == target).sum()), len(images))


@checked
def attack_success(model: nn.Module, data: ImageSet, mark: Trigger, target: int) -> Score:
    """How many images of other classes are taken for the target once the trigger is on them."""
    return taken_for(model, mark.stamp(others(data, target).images), target)


class Backdoor(NamedTuple):
    """What one model does with one trigger; a success never comes without its floor."""

    accuracy: Score
    floor: Score
    success: Score

    def named(self) -> dict[str, Score]:
        """The three by the names of their metrics in records."""
        return dict(zip(("test accuracy", FLOOR, SUCCESS), self, strict=True))


@checked(labelled=["data"])
def measure(model: nn.Module, data: ImageSet, mark: Trigger, target: int) -> Backdoor:
    """Clean accuracy, false-target rate and attack success on one labelled set."""
    rest = others(data, target)
    logits = predict(model, data)
    check_classes(data.num_classes - 1, logits)
    answer = logits.argmax(1)
    floor = Score(int((answer[data.labels != target] == target).sum()), len(rest))
    accuracy = Score(int((answer == data.labels).sum()), len(data))
    return Backdoor(accuracy, floor, taken_for(model, mark.stamp(rest.images), target))


@checked(labelled=["data"])
def response(model: nn.Module, data: ImageSet, mark: Trigger) -> Tensor:
    """Attack success for every class in the place of the target, ``(K,)``: does the trigger look like one?"""
    answer = predict(model, mark.stamp(data.images)).argmax(1)
    classes = torch.arange(data.num_classes, device=answer.device)
    other = data.labels[:, None] != classes
    return ((answer[:, None] == classes) & other).sum(0) / other.sum(0).clamp(min=1)


@checked
def label_survival(
    teacher: nn.Module, data: ImageSet, target: int, augment: Augment, views: int = 4, seed: int = 0
) -> Score:
    """Of ``views`` augmented views of each image: how many does the teacher still call ``target``?

    The views are those of training (crop, flip, cutout). Those that no longer count are labelled by a teacher
    that is asked online with what the image really shows.
    """
    check_number("views", views, least=1, whole=True)
    loader = Loader(data, 1000, augment=augment, seed=seed, drop_last=False)
    kept = sum(taken_for(teacher, batch.images, target).correct for _ in range(views) for batch in loader)
    return Score(kept, views * len(data))


@checked(some=["images", "originals"])
def visibility(images: Tensor, originals: Tensor) -> dict[str, float]:
    """How far images ``(N, C, H, W)`` are from their originals, the trigger included; means over the images.

    ``linf`` and ``l2`` in pixels of [0, 1], ``psnr`` in decibels, ``ssim`` at most 1.
    """
    first, second = to_float(images), to_float(originals)
    change = (first - second).flatten(1)
    psnr = -10 * change.square().mean(1).clamp(min=1e-10).log10()
    return {
        "linf": change.abs().amax(1).mean().item(),
        "l2": change.norm(dim=1).mean().item(),
        "psnr": psnr.mean().item(),
        "ssim": ssim(first, second).mean().item(),
    }
