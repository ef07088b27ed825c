"""Your own images as an ``ImageSet``: from a folder, a .npz file, or a torchvision set."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsec.data.convert import UNLABELLED, as_classes, as_labels
from kdsec.data.imageset import ImageSet
from kdsec.data.npz import read_arrays
from kdsec.errors import KdsecError, check_path

COLOUR_CHANNELS = (1, 3)
NO_CLASSES = ("unlabelled",)  # class names of a set that has no labels
LARGEST = 4096  # pixels a side to which images are scaled at most


def from_dataset(dataset: Any, *, classes: Sequence[str] | None = None, name: str | None = None) -> ImageSet:
    """The images of a torch or torchvision classification set, in its order.

    Every item must be ``(image, class number)``; the image a PIL image, a tensor ``(C, H, W)`` (uint8 or
    float in [0, 1]) or a numpy array ``(H, W)`` or ``(H, W, C)``. The set's own transform is applied: leave
    random changes to ``Augment``, and ``Normalize`` to the model.

    Args:
        dataset: yields the items.
        classes: class names; the set's attribute ``classes`` if not given.
        name: the class name of the set if not given.

    Raises:
        KdsecError: items of another form, images of different sizes, no class names.
    """
    name = name or type(dataset).__name__
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise KdsecError(
            "a DataLoader shuffles and cuts; give its set: ImageSet.from_dataset(loader.dataset, ...)"
        )
    classes = classes if classes is not None else getattr(dataset, "classes", None)
    if classes is None:
        raise KdsecError(f"{name} does not name its classes; give classes=['first', 'second', ...]")
    images, labels = [], []
    for item in _read(_items(dataset, name), name):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise KdsecError(f"{name}: an item is {type(item).__name__}, not the pair (image, class number)")
        images.append(_channels_first(item[0], name))
        labels.append(_class_number(item[1], name))
    return _checked(images, labels, classes, name)


def from_folder(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None, name: str | None = None
) -> ImageSet:
    """The images of a folder that has one subfolder a class, sorted by name.

    If any image has colours, all become RGB; transparency is dropped.

    Args:
        path: the folder.
        size: (height, width) to which every image is scaled, bilinearly; None keeps their size, which must
            then be the same.
        name: name of the folder if not given.

    Raises:
        KdsecError: no such folder, no subfolders, an empty one, a file that is no image, different sizes.
    """
    folder = check_path("folder", path)
    _check_size(size)
    if not folder.is_dir():
        raise KdsecError(f"{folder} is not a folder; give one with a subfolder of images for each class")
    classes = sorted(
        each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )
    if not classes:
        raise KdsecError(f"{folder} has no subfolders; put the images of each class into one of its own")
    images, labels = [], []
    for label, each in enumerate(classes):
        files = sorted(file for file in (folder / each).iterdir() if not file.name.startswith("."))
        if not files:
            raise KdsecError(f"{folder / each} has no images; add some or move the empty folder away")
        images += [_open(file, size) for file in files]
        labels += [label] * len(files)
    return _checked(_alike(images, str(folder)), labels, classes, name or folder.resolve().name)


def from_files(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None, name: str | None = None
) -> ImageSet:
    """The images of a folder without subfolders, sorted by name, without labels; else as ``from_folder``."""
    folder = check_path("folder", path)
    _check_size(size)
    if not folder.is_dir():
        raise KdsecError(f"{folder} is not a folder; give one with images")
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if not files:
        raise KdsecError(f"{folder} has no images; add some")
    images = _alike([_open(file, size) for file in files], str(folder))
    return _checked(images, [UNLABELLED] * len(files), NO_CLASSES, name or folder.resolve().name)


def _alike(images: list[np.ndarray], name: str) -> list[Tensor]:
    """Channels first; all RGB if any is."""
    if any(image.ndim == 3 for image in images):
        images = [np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image for image in images]
    return [_channels_first(image, name) for image in images]


def from_npz(
    path: str | os.PathLike[str],
    *,
    images: str = "images",
    labels: str | None = "labels",
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> ImageSet:
    """The images and labels of a .npz file, as ``np.savez(path, images=..., labels=...)`` writes it.

    Args:
        path: the file; it is not trusted (see ``kdsec.data.npz``).
        images: name of the array of images, ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.
        labels: name of the array of labels, ``(N,)`` or one-hot; None: there are none.
        classes: class names; "class 0", ... up to the largest label if not given.
        name: name of the file if not given.

    Raises:
        KdsecError: see ``read_arrays`` and ``ImageSet``.
    """
    file = check_path("file", path)
    arrays = read_arrays(file, [images] if labels is None else [images, labels])
    name = name or file.stem
    pixels = arrays[images]
    if pixels.ndim == 4 and pixels.shape[3] in COLOUR_CHANNELS:
        pixels = pixels.transpose(0, 3, 1, 2)
    elif pixels.ndim == 3:
        pixels = pixels[:, None]
    targets: np.ndarray
    if labels is None:
        targets, classes = np.full(len(pixels), UNLABELLED), classes or NO_CLASSES
    else:
        targets = arrays[labels]
    if classes is None:
        width = targets.shape[1] if targets.ndim == 2 else 1
        count = width if width > 1 else _largest(targets, file) + 1
        classes = [f"class {label}" for label in range(count)]
    return ImageSet(pixels, targets, as_classes(classes, name), name)  # type: ignore[arg-type]  # converted


def _largest(labels: np.ndarray, file: pathlib.Path) -> int:
    numbers = as_labels(labels, 2**16, str(file))
    if not len(numbers):
        raise KdsecError(f"{file} has no labels; give classes=[...] for a set without images")
    return max(0, int(numbers.max()))


def _read(items: Iterable[Any], name: str) -> Iterator[Any]:
    """The items; what a foreign set raises is told in one line."""
    try:
        yield from items
    except KdsecError:
        raise
    except Exception as error:
        raise KdsecError(f"{name} cannot be read: its item raised {type(error).__name__}: {error}") from error


def _items(dataset: Any, name: str) -> Iterable[Any]:
    """The items one by one: by index where the set has a length, as torch's sets do."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[index] for index in range(len(dataset)))
    if isinstance(dataset, Iterable):
        return dataset
    raise KdsecError(f"{name} is not a data set: it has no items")


def _channels_first(image: Any, name: str) -> Tensor:
    """One image ``(C, H, W)`` from a PIL image, a numpy array or a tensor."""
    from PIL.Image import Image

    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise KdsecError(f"{name}: an image is a tensor {tuple(image.shape)}, not (C, H, W)")
        return image
    if isinstance(image, Image):
        image = _pixels(image, name)
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise KdsecError(f"{name}: an image is a {type(image).__name__}; give PIL images, tensors or arrays")
    stacked = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(np.array(stacked))


def _class_number(label: Any, name: str) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    if number is None or number != label:
        raise KdsecError(
            f"{name}: a label is {type(label).__name__}, not a class number (see target_transform)"
        )
    return number


def _checked(images: list[Tensor], labels: list[int], classes: Any, name: str) -> ImageSet:
    return ImageSet(_stack(images, name), torch.tensor(labels), as_classes(classes, name), name)


def _stack(images: list[Tensor], name: str) -> Tensor:
    if not images:
        raise KdsecError(f"{name} has no images")
    kinds = {(tuple(image.shape), image.dtype) for image in images}
    if len(kinds) > 1:
        first, second = sorted(kinds, key=str)[:2]
        raise KdsecError(
            f"{name}: images differ, {first} and {second}; scale all to one size (from_folder: size=(H, W); "
            "torchvision: transform=Resize((H, W))) and one number of channels"
        )
    return torch.stack(images)


def _check_size(size: tuple[int, int] | None) -> None:
    fits = size is None or (isinstance(size, tuple | list) and len(size) == 2)
    if not fits or not all(type(each) is int and 1 <= each <= LARGEST for each in size or ()):
        raise KdsecError(f"size={size!r} must be (height, width), each a whole number from 1 to {LARGEST}")


def _open(file: pathlib.Path, size: tuple[int, int] | None) -> np.ndarray:
    """Pixels of an image file, ``(H, W)`` or ``(H, W, 3)`` uint8."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _pixels(image, str(file), size)
    except KdsecError:
        raise
    except Exception as error:  # decoders of damaged images raise almost anything
        raise KdsecError(
            f"{file} is no image that Pillow reads ({type(error).__name__}); convert it or move it elsewhere"
        ) from None


def _pixels(image: Any, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A PIL image as uint8 ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        KdsecError: more than 8 bits a channel, which a conversion would cut.
    """
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        raise KdsecError(
            f"{name}: an image has mode {image.mode}, more than 8 bits; convert it to 8 bits first"
        )
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    return np.asarray(image if size is None else image.resize(size[::-1], resample=2))  # 2: bilinear
