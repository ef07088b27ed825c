"""Shuffled, augmented training batches of a set that is held whole in memory.

After airbench (Jordan 2024, arXiv 2404.00498): the set is one tensor on the training device; crop and flip
are one gather of padded rows and columns, without worker processes. Pixels stay uint8 and channels-last until
the gather is done: a quarter of the bytes, in the memory format that convolutions prefer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsec.data.imageset import ImageSet, to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number


@checked
@dataclass(frozen=True)
class Augment:
    """Random changes to a training image, drawn again for every image in every epoch.

    Attributes:
        crop: pad by this many pixels on each side and crop back at a random offset (0: off).
        flip: mirror left to right with probability 1/2 (not for digits or traffic signs).
        alternate: with ``flip``: every image mirrored in each second epoch (arXiv:2404.00498, section 3.6).
        reflect: pad by reflection at the border and not by zeros.
        cutout: blank a square of this side at a random place (DeVries & Taylor 2017; 0: off).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    alternate: bool = False
    reflect: bool = False

    def __post_init__(self) -> None:
        check_number("crop", self.crop, least=0, whole=True)
        check_number("cutout", self.cutout, least=0, whole=True)
        if self.alternate and not self.flip:
            raise KdsecError("alternate=True mirrors in each second epoch; it needs flip=True")


class Batch(NamedTuple):
    """One training batch; ``position`` is the index of each image in the set."""

    images: Tensor  # (B, C, H, W) float32 in [0, 1], channels-last in memory
    labels: Tensor  # (B,) int64
    position: Tensor  # (B,) int64


@checked
class Loader:
    """Shuffled training batches; iterating is one epoch, and epochs continue one seeded random stream.

    Args:
        data: the set.
        batch_size: images a batch; a smaller set is one batch.
        augment: random changes to each image.
        seed: the order and the augmentations are a pure function of it.
        drop_last: leave out the images that do not fill the last batch, other ones in each epoch. In
            training, a batch of a few images would spoil the statistics of batch normalisation.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        drop_last: bool = True,
    ):
        if batch_size < 2 or len(data) < 2:
            raise KdsecError(f"batch_size={batch_size} of {len(data)} images; both must be 2 or more")
        self.augment = augment or Augment()
        self.batch_size = min(batch_size, len(data))
        self.drop_last = drop_last
        self.labels = data.labels
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: one stream for every device
        self.device = data.images.device
        pad = self.augment.crop
        padded = _reflected(data.images, pad) if self.augment.reflect else F.pad(data.images, (pad,) * 4)
        self.pixels = padded.permute(0, 2, 3, 1).contiguous()  # (N, H + 2 pad, W + 2 pad, C)
        self.size = data.shape[1:]
        self.mirrored: Tensor | None = None  # which images the last epoch mirrored, where that alternates

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.labels), generator=self.generator).to(self.device)
        plan = self._draw_epoch(order)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            yield Batch(self._images(index, plan, start), self.labels[index], index)

    def _draw_epoch(self, order: Tensor) -> dict[str, Tensor]:
        """All of an epoch's random numbers at once: a few large draws instead of many small ones."""
        (height, width), count = self.size, len(order)

        def draw(limit: int) -> Tensor:
            return torch.randint(limit, (count, 1), generator=self.generator).to(self.device)

        plan: dict[str, Tensor] = {}
        if self.augment.crop:
            plan["top"], plan["left"] = (
                draw(2 * self.augment.crop + 1),
                draw(2 * self.augment.crop + 1),
            )
        if self.augment.alternate:
            self.mirrored = draw(2).bool() if self.mirrored is None else ~self.mirrored
            plan["flip"] = self.mirrored[order]
        elif self.augment.flip:
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


def _reflected(images: Tensor, pad: int) -> Tensor:
    """Images padded by mirroring at the border; ``F.pad`` does that for floats only."""
    if pad >= min(images.shape[2:]):
        raise KdsecError(f"crop={pad} with reflect=True needs images larger than {pad} pixels a side")
    rows, columns = (
        (torch.arange(-pad, size + pad, device=images.device).abs() - size + 1).abs().neg() + size - 1
        for size in images.shape[2:]
    )
    return images[:, :, rows][:, :, :, columns]
