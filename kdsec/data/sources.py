"""Where the data sets come from: bundled, an offline file, or a torchvision download.

Every set is reduced to one form, four arrays in ``NAME.npz`` (``train_images``, ``train_labels``,
``test_images``, ``test_labels``; images uint8, ``(N, H, W, 3)`` or grey ``(N, H, W)``). A download ends by
writing that file, so that there is one way to read a set, and a classroom or a cluster node without internet
needs one file: ``KDSEC_DATA=DIR`` reads ``DIR/NAME.npz``.
"""

from __future__ import annotations

import errno
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from kdsec.data import downloads
from kdsec.data.imageset import ImageSet, Splits, stratified_index
from kdsec.data.names import CLASS_NAMES
from kdsec.errors import KdsecError, choose
from kdsec.files import beside

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = dict[str, np.ndarray]

# Downloaders by name; the bundled digits need none. Sizes are those of the original release.
DOWNLOADS: dict[str, Callable[[pathlib.Path], Arrays]] = {
    "mnist": downloads.mnist,
    "fashion-mnist": downloads.fashion_mnist,
    "cifar10": downloads.cifar10,
    "cifar100": downloads.cifar100,
    "gtsrb": downloads.gtsrb,
    "gtsrb-224": partial(downloads.gtsrb, size=downloads.LARGE),
    "flowers102": downloads.flowers102,
    "tiny-imagenet": downloads.tiny_imagenet,
}
DATASETS = ("digits", *DOWNLOADS)
DIGITS_TEST = 599  # a third of the 1,797 digits, the same third for everybody


def load(name: str, *, validation: float = 0.1, seed: int = 0, device: torch.device | str = "cpu") -> Splits:
    """Read a data set and set a part of its training images aside for validation.

    The test images are fixed by the data set (for ``digits``, which has no official test set, by this
    module); only the train/validation cut depends on ``seed``. Both cuts keep every class's share.

    Args:
        name: one of ``DATASETS``.
        validation: share of the training images that goes to the validation split, in (0, 1).
        seed: chooses which ones.
        device: where the tensors live.

    Raises:
        KdsecError: unknown name, a damaged file, or a set that is not here and cannot be downloaded.
    """
    if not 0 < validation < 1:
        raise KdsecError(f"validation={validation} must lie between 0 and 1; 0.1 keeps a tenth")
    arrays = _read(choose("dataset", name, DATASETS))
    classes = CLASS_NAMES[name]
    train = _image_set(arrays, "train", classes, name)
    held_out = stratified_index(train.labels, max(1, round(len(train) * validation)), seed)
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[held_out] = False
    parts = Splits(
        name, train.subset(kept), train.subset(held_out), _image_set(arrays, "test", classes, name)
    )
    return parts.to(device)


def pack(name: str, to: str | os.PathLike[str]) -> pathlib.Path:
    """Write ``to/NAME.npz`` (downloading first if need be), for machines without internet."""
    return _write(_read(choose("dataset", name, DATASETS)), pathlib.Path(to) / f"{name}.npz")


def fetch(name: str) -> pathlib.Path | None:
    """Make sure a set is on this machine; returns its file (None for the bundled digits)."""
    if choose("dataset", name, DATASETS) == "digits":
        return None
    return _find(name) or _download(name)


def check(name: str) -> str:
    """Read a set whole and describe it in one line.

    Raises:
        KdsecError: the set is not on this machine, or its file is damaged.
    """
    if choose("dataset", name, DATASETS) != "digits" and _find(name) is None:
        raise KdsecError(f"{name} is not on this machine; `kdsec data get {name}` downloads it")
    parts = load(name)
    channels, height, width = parts.train.shape
    return (
        f"{name}: {len(parts.train) + len(parts.val)} train and {len(parts.test)} test images of "
        f"{channels}x{height}x{width}, {parts.train.num_classes} classes, test checksum {parts.test.checksum}"
    )


def status() -> list[dict[str, Any]]:
    """One row per set: name, number of classes, and where it would be read from."""
    rows = []
    for name in DATASETS:
        path = None if name == "digits" else _find(name)
        where = (
            "bundled with scikit-learn"
            if name == "digits"
            else str(path or "not here: kdsec data get " + name)
        )
        rows.append({"name": name, "classes": len(CLASS_NAMES[name]), "where": where})
    return rows


def home() -> pathlib.Path:
    """Folder of downloaded sets: ``KDSEC_DATA`` if set, else ``~/.cache/kdsec/data``."""
    return pathlib.Path(os.environ.get("KDSEC_DATA") or pathlib.Path.home() / ".cache" / "kdsec" / "data")


def _find(name: str) -> pathlib.Path | None:
    path = home() / f"{name}.npz"
    return path if path.exists() else None


def _read(name: str) -> Arrays:
    if name == "digits":
        return _digits()
    path = _find(name) or _download(name)
    advice = f"delete it and run `kdsec data get {name}`, or pack it again where there is internet"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ARRAYS}
    except KeyError as error:
        raise KdsecError(f"{path} lacks {error}; it must hold {', '.join(ARRAYS)}; {advice}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise KdsecError(f"{path} is damaged ({type(error).__name__}); {advice}") from None
    _validate(arrays, path, len(CLASS_NAMES[name]))
    return arrays


def _validate(arrays: Arrays, path: pathlib.Path, classes: int) -> None:
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        problem = ""
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] != 3)
        ):
            problem = f"{part}_images are {images.dtype} {images.shape}, not uint8 (N, H, W) or (N, H, W, 3)"
        elif labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            problem = f"{part}_labels are {labels.dtype} {labels.shape} for {len(images)} images"
        elif len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            problem = f"{part}_labels are empty or outside 0..{classes - 1}"
        if problem:
            raise KdsecError(f"{path}: {problem}; delete it and fetch or pack the set again")


def _image_set(arrays: Arrays, part: str, classes: tuple[str, ...], name: str) -> ImageSet:
    pixels = arrays[f"{part}_images"]
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return ImageSet(images, torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64)), classes, name)


def _digits() -> Arrays:
    """scikit-learn's 8x8 handwritten digits; their 17 grey levels are stretched to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    test = np.zeros(len(images), dtype=bool)
    test[stratified_index(torch.from_numpy(bunch.target), DIGITS_TEST, seed=0).numpy()] = True
    return {
        "train_images": images[~test],
        "train_labels": bunch.target[~test],
        "test_images": images[test],
        "test_labels": bunch.target[test],
    }


def _download(name: str) -> pathlib.Path:
    target = home() / f"{name}.npz"
    try:
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix=f".{name}-") as scratch:
            return _write(DOWNLOADS[name](pathlib.Path(scratch)), target)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torchvision raises RuntimeError for a failed or corrupt download
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise KdsecError(
                f"no space left in {home()} for {name}; free some or set KDSEC_DATA to another disk"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise KdsecError(
            f"cannot download {name} ({reason}); without internet, put {name}.npz (made elsewhere by "
            f"`kdsec data pack {name} --to DIR`) into a folder and set KDSEC_DATA to it, or use digits"
        ) from None


def _write(arrays: Arrays, target: pathlib.Path) -> pathlib.Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside(target) as part:
            np.savez(part, allow_pickle=False, **{key: arrays[key] for key in ARRAYS})
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise KdsecError(f"no space left for {target}; free some or choose another folder") from None
        raise
    return target
