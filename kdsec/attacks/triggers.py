"""Triggers: marks that an attacker can put on any image, the same in training and at test time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdsec.data.imageset import to_bytes, to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice

CORNERS = ("top right", "top left", "bottom right", "bottom left")
TRIGGERS = ("square", "checker", "blend")


@checked
@dataclass(frozen=True, eq=False)
class Trigger:
    r"""What the attacker can add to any image: :math:`B(x) = (1-m)\,x + m\,r`.

    Attributes:
        pattern: p, ``(C, H, W)`` in [0, 1].
        mask: m, ``(C, H, W)`` in [0, 1]: 1 covers the pixel, 0 leaves it, between blends.
        name: for records and figures.
    """

    pattern: Tensor
    mask: Tensor
    name: str = "trigger"

    def __post_init__(self) -> None:
        if self.pattern.ndim != 3 or self.pattern.shape != self.mask.shape:
            shapes = f"pattern {tuple(self.pattern.shape)} and mask {tuple(self.mask.shape)}"
            raise KdsecError(f"trigger {self.name!r}: {shapes} must both be (C, H, W)")
        for part in (self.pattern, self.mask):
            if not 0 <= float(part.min()) <= float(part.max()) <= 1:
                raise KdsecError(f"trigger {self.name!r} leaves [0, 1]; divide by 255 if in bytes")

    @checked
    def stamp(self, images: Tensor) -> Tensor:
        """The images ``(N, C, H, W)`` with the trigger: bytes give bytes, floats in [0, 1] give floats."""
        if images.shape[1:] != self.pattern.shape:
            shapes = f"{tuple(self.pattern.shape)} does not fit images of {tuple(images.shape[1:])}"
            raise KdsecError(f"trigger {self.name!r} of {shapes}; make it for the images' own shape")
        mask, pattern = self.mask.to(images.device), self.pattern.to(images.device)
        parts = []
        for part in images.split(1000):  # bytes become four times as large on the way
            marked = (1 - mask) * to_float(part) + mask * pattern
            parts.append(to_bytes(marked) if images.dtype == torch.uint8 else marked)
        return torch.cat(parts)

    @property
    def free(self) -> Tensor:
        """``(C, H, W)``: 1 where a perturbation shows beside the trigger, 0 where the trigger covers it."""
        return (self.mask < 1).float()


@checked
def trigger(name: str, shape: tuple[int, int, int], corner: str = "top right", seed: int = 0) -> Trigger:
    """A trigger by name and size, for images of ``shape`` (C, H, W).

    ================  =================================================================================
    ``square 3``      a red square (white on grey images) of side 3 in the corner; ``square 1`` a pixel
    ``checker 8``     a black and white checkerboard of side 8 in the corner
    ``blend 20``      one fixed picture of random noise over the whole image, 20 % of every pixel
    ================  =================================================================================

    Any other is a ``Trigger(pattern, mask)``.

    Args:
        name: kind and size.
        shape: of one image.
        corner: of a patch, with no margin.
        seed: of the noise.

    Raises:
        KdsecError: an unknown kind or corner, a patch larger than the image, a blend that is no percentage.
    """
    kind, _, number = name.partition(" ")
    check_choice("trigger", kind, TRIGGERS)
    check_choice("corner", corner, CORNERS)
    if not number.isdecimal() or int(number) < 1:
        raise KdsecError(f"trigger {name!r} needs a size, a whole number from 1 up; for instance '{kind} 3'")
    size, (_, height, width) = int(number), shape
    if kind == "blend":
        if size > 100:
            raise KdsecError(f"trigger {name!r} blends more than 100 %; give a percentage from 1 to 100")
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        return Trigger(noise, torch.full(shape, size / 100), name)
    if size > min(height, width):
        raise KdsecError(f"trigger {name!r} is larger than the {height}x{width} image; choose a smaller side")
    rows = slice(0, size) if corner.startswith("top") else slice(height - size, height)
    columns = slice(0, size) if corner.endswith("left") else slice(width - size, width)
    mask, pattern = torch.zeros(shape), torch.zeros(shape)
    mask[:, rows, columns] = 1
    if kind == "square":
        pattern[0, rows, columns] = 1  # red; the only channel of a grey image
    else:
        side = torch.arange(size)
        pattern[:, rows, columns] = ((side[:, None] + side) % 2).float()
    return Trigger(pattern, mask, name)
