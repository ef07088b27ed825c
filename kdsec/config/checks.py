"""What the networks of a chapter's settings must have in common, beyond what each field allows."""

from __future__ import annotations

import functools
from typing import Any

import torch

from kdsec import models
from kdsec.config.fields import SHAPES
from kdsec.data.names import CLASS_NAMES
from kdsec.errors import KdsecError


def check_networks(chapter: str, settings: Any) -> None:
    """Refuse networks that a chapter's methods cannot train together; nothing is trained for it.

    Raises:
        KdsecError: names the settings and what to choose.
    """
    if chapter == "opening" and not _shared_sizes(settings.teacher, settings.student, settings.dataset):
        raise KdsecError(
            f"attention transfer pairs stages of equal height and width, and teacher={settings.teacher} has "
            f"none in common with student={settings.student}; choose convolutional nets of one family"
        )


@functools.lru_cache
def _shared_sizes(teacher: str, student: str, dataset: str) -> bool:
    with torch.device("meta"):
        images = torch.empty(1, *SHAPES[dataset])
        nets = [models.build(name, len(CLASS_NAMES[dataset]), SHAPES[dataset]) for name in (teacher, student)]
        ours, theirs = (
            {maps.shape[2:] for maps in net.eval().features(images) if maps.ndim == 4} for net in nets
        )
    return bool(ours & theirs)
