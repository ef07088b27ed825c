"""A labelled set of images held whole in memory, and its three splits."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint

UNLABELLED = -1  # the label of an image whose label the trainer does not have (a thief's query, for instance)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels as two tensors on one device.

    A poisoned, relabelled or unlabelled set is made with ``replace``; the loader and the trainer do not know
    the difference.

    Attributes:
        images: ``(N, C, H, W)``, uint8 in 0..255 or floating in [0, 1].
        labels: ``(N,)`` int64 in 0..K-1, or ``UNLABELLED``.
        classes: the K class names.
        name: name of the data set, for records and messages.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels) or self.labels.ndim != 1:
            shapes = f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)}"
            raise KdsecError(f"{self.name}: {shapes} do not fit; give images (N, C, H, W) and labels (N,)")
        if (
            len(self.labels)
            and not UNLABELLED <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes
        ):
            raise KdsecError(
                f"{self.name}: labels outside 0..{self.num_classes - 1} (or {UNLABELLED} for unlabelled)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @functools.cached_property
    def checksum(self) -> str:
        """Fingerprint of pixels and labels: two sets train the same model if and only if this agrees."""
        return fingerprint([self.images, self.labels, self.classes])

    def float_images(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The selected images as float32 in [0, 1], ``(n, C, H, W)``."""
        return to_float(self.images[index])

    def subset(self, index: Tensor | slice) -> ImageSet:
        """The selected images, in the order of ``index``."""
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index])

    def replace(self, *, images: Tensor | None = None, labels: Tensor | None = None) -> ImageSet:
        """The same set with other images, other labels, or both."""
        return dataclasses.replace(
            self,
            images=self.images if images is None else images,
            labels=self.labels if labels is None else labels,
        )

    def unlabelled(self) -> ImageSet:
        """The same images without their labels."""
        return self.replace(labels=torch.full_like(self.labels, UNLABELLED))

    def to(self, device: torch.device | str) -> ImageSet:
        return self.replace(images=self.images.to(device), labels=self.labels.to(device))

    def stratified(self, count: int, seed: int) -> ImageSet:
        """``count`` images in which every class keeps its share (to one image), drawn by ``seed``."""
        return self.subset(stratified_index(self.labels, count, seed))

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in [0, 1] pixel units, over the whole set."""
        images = self.images.flatten(2).transpose(0, 1).flatten(1)  # (C, N*H*W)
        if (
            images.dtype == torch.uint8
        ):  # exact and light: count the 256 values instead of converting them all
            counts = torch.stack([torch.bincount(channel, minlength=256) for channel in images]).double()
            levels = torch.arange(256, dtype=torch.float64, device=images.device) / 255
            mean = (counts * levels).sum(1) / counts.sum(1)
            std = ((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
        else:
            mean, std = images.double().mean(1), images.double().std(1, correction=0)
        return mean.tolist(), std.tolist()


@dataclass(frozen=True, eq=False)
class Splits:
    """Train, validation and test. Every choice is made on ``val``; ``test`` is only ever reported."""

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet

    def to(self, device: torch.device | str) -> Splits:
        return Splits(self.name, self.train.to(device), self.val.to(device), self.test.to(device))

    @property
    def checksums(self) -> dict[str, str]:
        return {part: getattr(self, part).checksum for part in ("train", "val", "test")}


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels 0..255 become float32 in [0, 1]; floating images pass as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] rounded to the 256 levels they are stored in."""
    return (images * 255).round().to(torch.uint8)


def stratified_index(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of ``count`` examples in which every class keeps its share, in random order.

    Each class's examples are spread evenly over (0, 1) in a random order of their own; the ``count`` smallest
    positions then hold each class in proportion, to within one example.

    Raises:
        KdsecError: ``count`` is not between 1 and the number of examples.
    """
    if not 1 <= count <= len(labels):
        raise KdsecError(f"cannot draw {count} of {len(labels)} images; choose 1 to {len(labels)}")
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        ranks = torch.randperm(len(members), generator=generator).double()
        position[members] = (ranks + offset) / len(members)
    chosen = position.argsort(stable=True)[:count]
    return chosen[torch.randperm(count, generator=generator)]
