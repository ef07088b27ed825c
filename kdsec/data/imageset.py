"""A labelled set of images held whole in memory, and its three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdsec.data.convert import UNLABELLED, as_classes, as_device, as_images, as_index, as_labels
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels as two tensors on one device.

    Numpy arrays, lists, other number types and one-hot labels are converted; see ``kdsec.data.convert``.
    A poisoned, relabelled or unlabelled set is made with ``replace``.

    Attributes:
        images: ``(N, C, H, W)``, uint8 in 0..255 or float32 in [0, 1].
        labels: ``(N,)`` int64 in 0..K-1, or ``UNLABELLED``.
        classes: the K class names.
        name: name of the data set, for records and messages.

    Raises:
        KdsecError: images or labels that cannot be converted, or that do not fit each other.
    """

    images: Tensor
    labels: Tensor = None  # type: ignore[assignment]  # left out: refused below, in one line
    classes: tuple[str, ...] = ()
    name: str = "images"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise KdsecError(f"name={self.name!r} of an image set must be a string")
        images = as_images(self.images, self.name)
        if self.labels is None or (isinstance(self.classes, tuple) and not self.classes):
            raise KdsecError(
                f"{self.name}: an image set needs labels (N,), -1 where unknown, and the names of the "
                "classes: ImageSet(images, labels, classes, name)"
            )
        classes = as_classes(self.classes, self.name)
        labels = as_labels(self.labels, len(classes), self.name)
        vars(self).update(images=images, labels=labels, classes=classes)
        self._check_lengths()

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, classes: Sequence[str] | None = None, name: str | None = None
    ) -> ImageSet:
        """The images of a torch or torchvision classification set; see ``kdsec.data.own.from_dataset``."""
        from kdsec.data.own import from_dataset

        return from_dataset(dataset, classes=classes, name=name)

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

    @property
    def checksum(self) -> str:
        """Fingerprint of pixels and labels: two sets train the same model if and only if this agrees.

        Computed each time, a quarter of a second for CIFAR-10: pixels may be changed in place.
        """
        return fingerprint([self.images, self.labels, self.classes])

    @checked
    def float_images(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The selected images as float32 in [0, 1], ``(n, C, H, W)``."""
        return to_float(self.images[index])

    def subset(self, index: Tensor | slice) -> ImageSet:
        """The selected images, in the order of ``index``."""
        if not isinstance(index, slice):
            index = as_index(index, self.name)
        try:
            return self._with(self.images[index], self.labels[index])
        except (IndexError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise KdsecError(f"{self.name}: cannot select these of {len(self)} images ({reason})") from None

    def replace(self, *, images: Any = None, labels: Any = None) -> ImageSet:
        """The same set with other images, other labels, or both; only what is new is checked."""
        changed = self._with(
            self.images if images is None else as_images(images, self.name),
            self.labels if labels is None else as_labels(labels, self.num_classes, self.name),
        )
        changed._check_lengths()
        return changed

    def unlabelled(self) -> ImageSet:
        """The same images without their labels."""
        return self._with(self.images, torch.full_like(self.labels, UNLABELLED))

    def to(self, device: torch.device | str) -> ImageSet:
        where = as_device(device)
        return self._with(self.images.to(where), self.labels.to(where))

    @checked
    def stratified(self, count: int, seed: int) -> ImageSet:
        """``count`` images in which every class keeps its share (to one image), drawn by ``seed``."""
        return self.subset(stratified_index(self.labels, count, seed))

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in [0, 1] pixel units, over the whole set."""
        if not len(self):
            raise KdsecError(f"{self.name} has no images, so no mean and no standard deviation")
        images = self.images.flatten(2).transpose(0, 1).flatten(1)  # (C, N*H*W)
        if images.dtype == torch.uint8:  # exact and small: count the 256 values instead of converting them
            counts = torch.stack([torch.bincount(channel, minlength=256) for channel in images]).double()
            levels = torch.arange(256, dtype=torch.float64, device=images.device) / 255
            mean = (counts * levels).sum(1) / counts.sum(1)
            std = ((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
        else:
            mean, std = images.double().mean(1), images.double().std(1, correction=0)
        return mean.tolist(), std.tolist()

    def _with(self, images: Tensor, labels: Tensor) -> ImageSet:
        """The same set with tensors that are already checked: no second look at the pixels."""
        other = object.__new__(type(self))
        vars(other).update(images=images, labels=labels, classes=self.classes, name=self.name)
        return other

    def _check_lengths(self) -> None:
        if len(self.images) != len(self.labels):
            raise KdsecError(
                f"{self.name}: {len(self.images)} images and {len(self.labels)} labels do not fit; "
                "give one label for each image"
            )
        if self.images.device != self.labels.device:
            raise KdsecError(
                f"{self.name}: images on {self.images.device}, labels on {self.labels.device}; "
                "move both to one device"
            )


@dataclass(frozen=True, eq=False)
class Splits:
    """Train, validation and test. Every choice is made on ``val``; ``test`` is only ever reported.

    Raises:
        KdsecError: parts whose classes or image shapes differ.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for part in (self.val, self.test):
            if part.classes != self.train.classes or part.shape != self.train.shape:
                raise KdsecError(
                    f"{self.name}: the parts differ: {self.train.num_classes} classes of "
                    f"{self.train.shape} images for training, {part.num_classes} of {part.shape} in another "
                    "part; give all three the same class names and image shape"
                )

    def to(self, device: torch.device | str) -> Splits:
        return Splits(self.name, self.train.to(device), self.val.to(device), self.test.to(device))

    @property
    def parts(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Train, validation and test, in this order."""
        return self.train, self.val, self.test

    @property
    def checksums(self) -> dict[str, str]:
        return {part: getattr(self, part).checksum for part in ("train", "val", "test")}


def to_float(images: Tensor) -> Tensor:
    """Float images in [0, 1]: uint8 is divided by 255, floats pass unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] rounded to the 256 levels they are stored in."""
    return (images * 255).round().to(torch.uint8)


def stratified_index(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of ``count`` examples in which every class keeps its share, in random order.

    Each class's examples are spread evenly over (0, 1) in random order; the ``count`` smallest positions then
    hold each class in proportion, to within one example.

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
