"""Shuffled, augmented batches without workers: the whole set in memory, whole batches at a time.

The loader follows airbench (Jordan 2024, arXiv 2404.00498): the set lives as one tensor on the training
device and augmentation is an indexing operation on a batch, so there is nothing left for worker processes to
do. Crop and flip are *one* gather: for each image we compute which padded rows and columns it shows, and read
just those. Pixels stay uint8 in channels-last order until the gather is done, which moves a quarter of the
bytes and delivers batches in the memory format that convolutions like best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data.imageset import ImageSet, to_float
from kdsec.errors import KdsecError


@dataclass(frozen=True)
class Augment:
    """What to do to a training image: every image, every epoch, afresh.

    Attributes:
        crop: zero-pad by this many pixels on each side and crop back at a random offset (0: off).
        flip: mirror left to right with probability 1/2 (not for digits or traffic signs).
        cutout: blank a square of this side at a random place (DeVries & Taylor 2017; 0: off).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0


class Batch(NamedTuple):
    """One training batch. ``position`` says where each image stands in the set, for cached teacher labels."""

    images: Tensor  # (B, C, H, W) float32 in [0, 1], channels-last in memory
    labels: Tensor  # (B,) int64
    position: Tensor  # (B,) int64
    ask: Callable[[nn.Module], Tensor] | None = None  # what a teacher says to it: see kdsec.answers


class Loader:
    """Shuffled training batches; iterating is one epoch, and epochs continue one seeded random stream.

    All batches are full: what is left over at the end of an epoch is dropped, other images each time. A last
    batch of a few images would give batch normalisation statistics of a few images, and one such step at a
    high learning rate undoes many good ones.

    Args:
        data: the set.
        batch_size: images a batch; a smaller set is one batch.
        augment: random changes to each image.
        seed: the order and the augmentations are a pure function of it.
    """

    def __init__(self, data: ImageSet, batch_size: int, *, augment: Augment | None = None, seed: int = 0):
        if batch_size < 2 or len(data) < 2:
            raise KdsecError(f"batch_size={batch_size} of {len(data)} images; both must be 2 or more")
        self.augment = augment or Augment()
        self.batch_size = min(batch_size, len(data))
        self.labels = data.labels
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: one stream for every device
        self.device = data.images.device
        pad = self.augment.crop
        padded = F.pad(data.images, (pad, pad, pad, pad))
        self.pixels = padded.permute(0, 2, 3, 1).contiguous()  # (N, H + 2 pad, W + 2 pad, C)
        self.size = data.shape[1:]

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.labels), generator=self.generator).to(self.device)
        plan = self._draw_epoch(len(self.labels))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            yield Batch(self._images(index, plan, start), self.labels[index], index)

    def _draw_epoch(self, count: int) -> dict[str, Tensor]:
        """All of an epoch's random numbers at once: a few large draws instead of many small ones."""
        height, width = self.size

        def draw(limit: int) -> Tensor:
            return torch.randint(limit, (count, 1), generator=self.generator).to(self.device)

        plan: dict[str, Tensor] = {}
        if self.augment.crop:
            plan["top"], plan["left"] = (
                draw(2 * self.augment.crop + 1),
                draw(2 * self.augment.crop + 1),
            )
        if self.augment.flip:
            plan["flip"] = draw(2).bool()
        if self.augment.cutout:
            plan["hole_top"], plan["hole_left"] = draw(height), draw(width)
        return plan

    def _images(self, index: Tensor, plan: dict[str, Tensor], start: int) -> Tensor:
        chosen = {name: values[start : start + len(index)] for name, values in plan.items()}
        height, width = self.size
        if not chosen:
            return to_float(self.pixels[index]).permute(0, 3, 1, 2)
        rows = torch.arange(height, device=self.device).expand(len(index), -1)
        columns = torch.arange(width, device=self.device).expand(len(index), -1)
        if self.augment.flip:
            columns = torch.where(chosen["flip"], width - 1 - columns, columns)
        if self.augment.crop:
            rows, columns = rows + chosen["top"], columns + chosen["left"]
        images = to_float(self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]])
        if self.augment.cutout:
            images = images * self._outside_hole(chosen)[..., None]
        return images.permute(0, 3, 1, 2)

    def _outside_hole(self, chosen: dict[str, Tensor]) -> Tensor:
        """``(B, H, W)``: False inside the blanked square, whose centre may lie anywhere in the image."""
        half = self.augment.cutout // 2
        height, width = self.size
        rows = torch.arange(height, device=self.device) - chosen["hole_top"] + half
        columns = torch.arange(width, device=self.device) - chosen["hole_left"] + half
        inside_rows = (rows >= 0) & (rows < self.augment.cutout)
        inside_columns = (columns >= 0) & (columns < self.augment.cutout)
        return ~(inside_rows[:, :, None] & inside_columns[:, None, :])
