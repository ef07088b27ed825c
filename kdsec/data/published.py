"""What the published data sets contain, to compare a file with."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


class Published(NamedTuple):
    """Number of training and test images, and the shape (height, width, channels) of one."""

    train: int
    test: int
    shape: tuple[int, int, int]


# GTSRB has two training sets: 26,640 images of the competition, which torchvision downloads, and 39,209
# with the competition's test images, the official set (https://benchmark.ini.rub.de/gtsrb_news.html).
SETS = {
    "mnist": Published(60_000, 10_000, (28, 28, 1)),
    "fashion-mnist": Published(60_000, 10_000, (28, 28, 1)),
    "cifar10": Published(50_000, 10_000, (32, 32, 3)),
    "cifar100": Published(50_000, 10_000, (32, 32, 3)),
    "gtsrb": Published(26_640, 12_630, (32, 32, 3)),
    "gtsrb-224": Published(26_640, 12_630, (224, 224, 3)),
    "flowers102": Published(2_040, 6_149, (224, 224, 3)),
    "tiny-imagenet": Published(100_000, 10_000, (64, 64, 3)),
}

# ``content_sha256`` of parts whose pixels were compared with the published files.
SHA256 = {
    ("fashion-mnist", "train"): "0c69d5cdeb902b69084012f812f066de080317bb3c64f43ca87f910d8ec86906",
    ("fashion-mnist", "test"): "90c92c0507755a7d443edde8297ce4d0f131e42884e2e87e7fc9b81ffe215258",
    ("cifar100", "train"): "36ce7a701fbea47796e570c34382aad50f2539687cfcbc6ae96e2f56530d29b6",
}
# Copies that are known to differ from the published files.
INEXACT = {
    "0cddf4df65d8b8b91005fcab41210a9b0fde459f47e9d8527be6bafd331a43d4": (
        "86 of its training images come from JPEG copies and differ slightly from the published ones"
    ),
    "e86aba3b8a4dedd87f94c92930e4fc6b0c6664eaa26601da8f6064548889333c": (
        "25 of its test images come from JPEG copies and differ slightly from the published ones"
    ),
}


def content_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """Hash of images and labels that does not depend on their order or on the file format."""
    rows = (
        hashlib.sha256(int(label).to_bytes(1, "little") + image.tobytes()).digest()
        for image, label in zip(images, labels, strict=True)
    )
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def content_notes(name: str, part: str, images: np.ndarray, labels: np.ndarray) -> str:
    """One clause on how the content compares with the published one."""
    found = content_sha256(images, labels)
    if found in INEXACT:
        return INEXACT[found]
    expected = SHA256.get((name, part))
    if expected is None:
        return f"no published checksum of the {part} images is recorded here"
    if found == expected:
        return f"its {part} images are the published ones"
    return f"its {part} images are not exactly the published ones (SHA-256 {found[:16]}, not {expected[:16]})"
