"""Copies of an audited model: how they are trained, from answers that were asked once and stored."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec import models
from kdsec.attacks.extraction import ExtractionAttack, TrainSpec
from kdsec.data import Augment, ImageSet
from kdsec.data.imageset import to_float
from kdsec.distill import HardLabels
from kdsec.errors import KdsecError
from kdsec.optim import muon_parameters
from kdsec.oracle import pixel_hashes
from kdsec.train import Recipe, predict

TINY = 16  # pixels a side up to which copies are the small networks of the digits


def recipe(shape: tuple[int, int, int], images: int, flip: bool = False) -> Recipe:
    """How every copy is trained: more steps for more images, the same for all ways of serving."""
    growth = max(0.7, (images / 500) ** 0.5)
    if min(shape[1:]) <= TINY:
        augment = Augment(crop=1, flip=flip)
        return Recipe(steps=round(200 * growth), batch_size=64, augment=augment, precision="float32")
    return Recipe(
        steps=round(300 * growth),
        batch_size=64,
        optimizer="muon",
        lr=0.08,
        other_lr=0.01,
        weight_decay=0.0,
        schedule="linear",
        augment=Augment(crop=2, reflect=True, flip=flip),
    )


def copy_network(name: str | None, thief: ImageSet, seed: int) -> models.Classifier:
    """A fresh copy, normalised and whitened by the thief's images; by default a network of their size."""
    name = name or ("digits-medium" if min(thief.shape[1:]) <= TINY else "airbench-16")
    mean, std = thief.mean_std()
    model = models.build(name, thief.num_classes, thief.shape, mean=mean, std=std, seed=1_000_003 + seed)
    models.whiten(model, thief.images[:2000].cpu())
    return model.to(thief.images.device)


def check_student(name: str | None, thief: ImageSet) -> None:
    """Refuse a network of the copies that does not suit the images, before the model is asked."""
    net = copy_network(name, thief, 0)
    if recipe(thief.shape, len(thief)).optimizer == "muon" and not muon_parameters(net):
        raise KdsecError(
            f"student {name} has no convolutions with batch normalisation, which copies of images above "
            f"{TINY}x{TINY} need; take another, such as airbench-16, cnn or resnet8"
        )


class Stored(nn.Module):
    """A lookup of answers by an image's pixels: each was asked once, and this is what came back.

    Args:
        images: ``(N, C, H, W)``.
        table: logits ``(N, K)``.
    """

    hashes: Tensor
    table: Tensor

    def __init__(self, images: Tensor, table: Tensor) -> None:
        super().__init__()
        hashes, order = pixel_hashes(to_float(images)).sort()
        self.register_buffer("hashes", hashes)
        self.register_buffer("table", table[order.cpu()].to(images.device))

    def forward(self, images: Tensor) -> Tensor:
        place = torch.searchsorted(self.hashes, pixel_hashes(images)).clamp(max=len(self.hashes) - 1)
        return self.table[place]


def on_stored(attack: ExtractionAttack) -> ExtractionAttack:
    """``attack`` with answers that are asked once for each image as it is, and looked up afterwards."""

    def prepare(
        student: Any, oracle: Any, data: ImageSet, temperature: float, alpha: float, seed: int
    ) -> TrainSpec:
        spec = attack.prepare(student, oracle, data, temperature, alpha, seed)
        loss: Any = spec.loss
        if not isinstance(getattr(loss, "teacher", None), nn.Module):
            return spec
        table = predict(loss.teacher, data)
        if isinstance(loss, HardLabels):  # equal decisions are one training, whatever came with them
            table = 10.0 * F.one_hot(table.argmax(1), table.shape[1])
        return TrainSpec(spec.model, spec.data, dataclasses.replace(loss, teacher=table))

    return dataclasses.replace(attack, prepare=prepare)
