"""Data sets by name: bundled with scikit-learn, from an offline file, or downloaded by torchvision.

Every set is reduced to four arrays in ``NAME.npz`` (``train_images``, ``train_labels``, ``test_images``,
``test_labels``; images uint8, ``(N, H, W, 3)`` or grey ``(N, H, W)``). A download ends by writing that file.
A classroom or a cluster node without internet needs only it: ``KDSEC_DATA=DIR`` reads ``DIR/NAME.npz``.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from kdsec.data import downloads, published
from kdsec.data.convert import as_device
from kdsec.data.imageset import ImageSet, Splits, stratified_index
from kdsec.data.names import CLASS_NAMES
from kdsec.data.npz import read_arrays
from kdsec.entry import checked
from kdsec.errors import KdsecError, atomic_write, check_choice, disk_is_full

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = dict[str, np.ndarray]

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


@checked
def load(name: str, *, validation: float = 0.1, seed: int = 0, device: torch.device | str = "cpu") -> Splits:
    """Read a data set and cut a validation split off its training images.

    The test images are fixed by the data set (for ``digits``, which has no official test set, by this
    module). Only the train/validation cut depends on ``seed``. Both cuts keep every class's share.

    Args:
        name: one of ``DATASETS``.
        validation: share of the training images that goes to the validation split, in (0, 1).
        seed: chooses which ones.
        device: where the tensors live.

    Raises:
        KdsecError: unknown name, a damaged file, or a set not found in KDSEC_DATA and not downloadable.
    """
    device = as_device(device)
    if not 0 < validation < 1:
        raise KdsecError(f"validation={validation} must lie between 0 and 1; 0.1 keeps a tenth")
    arrays = _read(check_choice("dataset", name, DATASETS))
    train = _image_set(arrays, "train", name)
    held_out = stratified_index(train.labels, max(1, round(len(train) * validation)), seed)
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[held_out] = False
    parts = Splits(name, train.subset(kept), train.subset(held_out), _image_set(arrays, "test", name))
    return parts.to(device)


def pack(name: str, to: str | os.PathLike[str], *, overwrite: bool = False) -> pathlib.Path:
    """Write ``to/NAME.npz`` (downloading first if needed), for machines without internet.

    Raises:
        KdsecError: no such set, a folder that cannot be written, or a file that is there, unless
            ``overwrite``.
    """
    if not os.fspath(to):
        raise KdsecError("the folder to pack into is an empty string (an unset variable?); name a folder")
    target = pathlib.Path(to) / f"{check_choice('dataset', name, DATASETS)}.npz"
    if target.exists() and not overwrite:
        raise KdsecError(f"{target} is there already; choose another folder, or say --overwrite")
    return _write(_read(name), target)


def fetch(name: str) -> pathlib.Path | None:
    """Make sure a set is on this machine; returns its file (None for the bundled digits)."""
    if check_choice("dataset", name, DATASETS) == "digits":
        return None
    return _find(name) or _download(name)


def check(name: str) -> str:
    """Read a set whole, compare it with the published one, and describe it in one line.

    Raises:
        KdsecError: the set is not on this machine, its file is damaged, a class has no images, or counts or
            shapes are not the published ones.
    """
    if check_choice("dataset", name, DATASETS) != "digits" and _find(name) is None:
        raise KdsecError(f"{name} is not on this machine; `kdsec data get {name}` downloads it")
    arrays = _read(name)
    train, test = (_image_set(arrays, part, name) for part in ("train", "test"))
    for part, images in (("train", train), ("test", test)):
        missing = (images.labels.bincount(minlength=images.num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise KdsecError(
                f"{name}: the {part} images have none of class {missing[0]} ({len(missing)} such)"
            )
    channels, height, width = train.shape
    counts = f"{len(train)} train and {len(test)} test images of {channels}x{height}x{width}"
    notes = []
    if name in published.SETS:
        known = published.SETS[name]
        if (len(train), len(test), (height, width, channels)) != known:
            raise KdsecError(
                f"{name}: {counts}; the published set has {known.train} and {known.test} of "
                f"{known.shape[2]}x{known.shape[0]}x{known.shape[1]}. The file can be used, but its "
                "results are not those of the published set"
            )
        notes = [
            published.content_notes(name, part, arrays[f"{part}_images"], arrays[f"{part}_labels"])
            for part in ("train", "test")
        ]
    summary = f"{name}: {counts}, {train.num_classes} classes, test checksum {test.checksum}"
    return "; ".join([summary, *dict.fromkeys(notes)])


def status() -> list[dict[str, Any]]:
    """One row per set: name, number of classes, and where it would be read from."""
    rows = []
    for name in DATASETS:
        where = str(_find(name) or f"not here: kdsec data get {name}")
        if name == "digits":
            where = "bundled with scikit-learn"
        rows.append({"name": name, "classes": len(CLASS_NAMES[name]), "where": where})
    return rows


def home() -> pathlib.Path:
    """Folder of downloaded sets: ``KDSEC_DATA`` if set, else ``~/.cache/kdsec/data``."""
    given = os.environ.get("KDSEC_DATA")
    return pathlib.Path(given).expanduser() if given else pathlib.Path.home() / ".cache" / "kdsec" / "data"


def _find(name: str) -> pathlib.Path | None:
    path = home() / f"{name}.npz"
    return path if path.exists() else None


def _read(name: str) -> Arrays:
    if name == "digits":
        return _digits()
    path = _find(name) or _download(name)
    try:
        arrays = read_arrays(path, ARRAYS)
        problem = _problem(arrays, len(CLASS_NAMES[name]))
        if problem:
            raise KdsecError(f"{path}: {problem}")
    except KdsecError as error:
        raise KdsecError(
            f"{error}. {name}.npz must hold {', '.join(ARRAYS)}; move this file elsewhere and run "
            f"`kdsec data get {name}`, or `kdsec data pack {name}` where there is internet"
        ) from None
    return arrays


def _problem(arrays: Arrays, classes: int) -> str:
    """What is wrong with the four arrays; empty if nothing is."""
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
            return f"{part}_images are {images.dtype} {images.shape}, not uint8 (N, H, W) or (N, H, W, 3)"
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            return f"{part}_labels are {labels.dtype} {labels.shape} for {len(images)} images"
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            return f"{part}_labels are empty or outside 0..{classes - 1}"
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        shapes = f"{arrays['train_images'].shape[1:]} and {arrays['test_images'].shape[1:]}"
        return f"training and test images have different shapes, {shapes}"
    return ""


def _image_set(arrays: Arrays, part: str, name: str) -> ImageSet:
    pixels = arrays[f"{part}_images"]
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return ImageSet(
        torch.from_numpy(images), torch.from_numpy(arrays[f"{part}_labels"]), CLASS_NAMES[name], name
    )


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
            arrays = DOWNLOADS[name](pathlib.Path(scratch))
            _check_download(name, arrays)
            return _write(arrays, target)
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for a failed download
        if disk_is_full(error):
            raise KdsecError(
                f"no space left in {home()} for {name}; free some or set KDSEC_DATA to another disk"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise KdsecError(
            f"cannot download {name} ({reason}); without internet, put {name}.npz (made elsewhere by "
            f"`kdsec data pack {name} --to DIR`) into a folder and set KDSEC_DATA to it, or use digits"
        ) from None


def _check_download(name: str, arrays: Arrays) -> None:
    """Refuse a download whose content is not the published one, where its SHA-256 is recorded."""
    for part in ("train", "test"):
        expected = published.SHA256.get((name, part))
        if expected is None:
            continue
        found = published.content_sha256(arrays[f"{part}_images"], arrays[f"{part}_labels"])
        if found != expected:
            raise KdsecError(
                f"the download of {name} is not the published set ({part} images: SHA-256 {found}, not "
                f"{expected}); nothing was kept. Try again, or from another network"
            )


def _write(arrays: Arrays, target: pathlib.Path) -> pathlib.Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as part:
            np.savez(part, allow_pickle=False, **{key: arrays[key] for key in ARRAYS})
    except OSError as error:
        if disk_is_full(error):
            raise KdsecError(f"no space left for {target}; free some or choose another folder") from None
        raise KdsecError(f"cannot write {target} ({error.strerror}); choose another folder") from None
    return target
