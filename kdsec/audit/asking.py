"""Asking an audited model: every image once, the answers stored."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.audit.loading import Target, as_rows, guarded
from kdsec.cache import Cache
from kdsec.data.imageset import to_bytes, to_float
from kdsec.errors import KdsecError
from kdsec.oracle import pixel_hashes
from kdsec.train import progress_style

LARGEST = 64  # pixels a side above which copies see the images shrunk to SHRUNK
SHRUNK = 32
CHUNK = 250  # images asked at a time, and kept at once
AGAIN = 64  # images that are asked a second time
HINT = "; does it expect another size (--size HxW), other channels, or a fixed number of images at once?"


def distinct(pixels: Tensor) -> Tensor:
    """Index of the first of each group of equal images, ``(n,)``."""
    hashes = torch.cat([pixel_hashes(to_float(part)) for part in pixels.split(1000)])
    seen, keep = set(), []
    for place, value in enumerate(hashes.tolist()):
        if value not in seen:
            seen.add(value)
            keep.append(place)
    return torch.tensor(keep)


def shrunk(pixels: Tensor) -> Tensor:
    """Images as copies see them: small ones as they are, large ones averaged down."""
    if max(pixels.shape[2:]) <= LARGEST:
        return pixels
    size = (SHRUNK, SHRUNK)
    return torch.cat([to_bytes(F.adaptive_avg_pool2d(to_float(part), size)) for part in pixels.split(CHUNK)])


def ask(target: Target, pixels: Tensor, hint: str = "") -> Tensor:
    """Logits ``(N, K)`` that ``target`` answers now; ``hint`` ends the line if it raises."""
    images = to_float(pixels)
    shape = f"float images {tuple(images.shape)} in [0, 1]"
    try:
        answer = guarded(f"{target.name}, given {shape},", lambda: target.call(images))
    except KdsecError as error:
        if len(images) == 1:
            raise KdsecError(f"{error}{hint}") from None
        # Exported for one image at a time.
        return torch.cat([ask(target, image, hint) for image in pixels.split(1)])
    return as_rows(answer, len(images))


def answers(target: Target, pixels: Tensor, cache: Cache, notes: list[str]) -> Tensor:
    """Logits ``(N, K)``, asked once and kept; some are asked twice to see whether answers repeat."""
    say(f"asking {target.name} about {len(pixels):,} images")
    parts = []
    for place, part in enumerate(pixels.split(CHUNK)):
        say(f"  {place * CHUNK:,} answers", end="\r")
        key = [target.key or os.urandom(8).hex(), part, "answers"]

        def make(part: Tensor = part) -> dict[str, Tensor]:
            return {"answers": ask(target, part)}

        stored = cache.tensors("audit-answers", key, torch.device("cpu"), make, like={"answers": None})
        parts.append(stored["answers"])
    table = torch.cat(parts)
    again = ask(target, pixels[:AGAIN].flip(0)).flip(0)
    change = (again.softmax(1) - table[: len(again)].softmax(1)).abs().amax(1)
    if change.max() > 0.01:
        other = (again.argmax(1) != table[: len(again)].argmax(1)).float().mean().item()
        notes.append(
            f"{target.name} answers differently when asked again, or beside other images: a probability "
            f"moved by up to {change.max():.2f}, {other:.0%} of {len(again)} images got another class. Each "
            "image was asked once for the audit, and this answer was stored and used. Has the model changed "
            "since an earlier audit? Then set KDSEC_CACHE to a new folder and audit again."
        )
        say(notes[-1])
    return table


class Answering(nn.Module):
    """A target as a network from float images to logits, for methods that ask again and again."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        return ask(self.target, images)


# Progress


@contextlib.contextmanager
def quiet_training() -> Iterator[None]:
    """The audit says itself what it does: no line for each training."""
    before = os.environ.get("KDSEC_PROGRESS")
    _SAYS.append(progress_style() != "off")
    os.environ["KDSEC_PROGRESS"] = "off"
    try:
        yield
    finally:
        _SAYS.pop()
        os.environ.pop("KDSEC_PROGRESS")
        if before is not None:
            os.environ["KDSEC_PROGRESS"] = before


_SAYS: list[bool] = []


def say(text: str, end: str = "\n") -> None:
    if _SAYS and _SAYS[-1] and (end == "\n" or sys.stderr.isatty()):
        print(f"{text:<60}", end=end, file=sys.stderr, flush=True)
