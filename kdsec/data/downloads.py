"""Downloads of the published data sets, over https, most through torchvision, which checks their MD5.

Each function takes an empty scratch folder and returns the four arrays of ``kdsec.data.sources``. torchvision
is imported inside: reading a file that is already here does not wait for it.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# torchvision has no class for Tiny ImageNet (Stanford CS231n).
TINY_URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
# torchvision's own mirrors of these two use plain http.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
LARGE = 224  # side of the images that networks for ImageNet take


def mnist(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import MNIST

    return _from_tensors(_over_https(MNIST, MNIST_URL), scratch)


def fashion_mnist(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import FashionMNIST

    return _from_tensors(_over_https(FashionMNIST, FASHION_URL), scratch)


def cifar10(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR10

    return _from_tensors(CIFAR10, scratch)


def cifar100(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR100

    return _from_tensors(CIFAR100, scratch)


def gtsrb(scratch: pathlib.Path, size: int = 32) -> dict[str, np.ndarray]:
    """Photographs of signs, of many sizes, scaled to ``size`` pixels a side."""
    from torchvision.datasets import GTSRB

    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        signs = GTSRB(str(scratch), split=part, download=True)
        arrays |= _stack(part, [(_resized(image, size), label) for image, label in signs])
    return arrays


def flowers102(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    """The middle square of every photograph. Its 1,020 validation images count as training images."""
    from torchvision.datasets import Flowers102

    parts = {
        name: [
            (_resized(_square(image), LARGE), label)
            for image, label in Flowers102(scratch, name, download=True)
        ]
        for name in ("train", "val", "test")
    }
    return _stack("train", parts["train"] + parts["val"]) | _stack("test", parts["test"])


def tiny_imagenet(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    """The labelled validation images serve as test set, as is usual: the real test labels are not public."""
    from PIL import Image
    from torchvision.datasets.utils import download_url, extract_archive

    archive = scratch / "tiny-imagenet-200.zip"
    download_url(TINY_URL, str(scratch))
    with archive.open("rb") as stream:
        if (found := hashlib.file_digest(stream, "sha256").hexdigest()) != TINY_SHA256:
            raise RuntimeError(f"SHA-256 {found}, not {TINY_SHA256}")
    extract_archive(str(archive), str(scratch))
    folder = scratch / "tiny-imagenet-200"
    classes = {name: label for label, name in enumerate((folder / "wnids.txt").read_text().split())}

    def read(path: pathlib.Path) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB"))

    train = [
        (read(path), label)
        for name, label in classes.items()
        for path in sorted(folder.glob(f"train/{name}/images/*.JPEG"))
    ]
    rows = [
        line.split("\t")[:2] for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()
    ]
    test = [(read(folder / "val" / "images" / file), classes[name]) for file, name in rows]
    return _stack("train", train) | _stack("test", test)


def _over_https(kind: Any, url: str) -> Any:
    """A torchvision data set that downloads from ``url``."""
    return type(kind.__name__, (kind,), {"mirrors": [url]})


def _from_tensors(kind: Any, scratch: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of a torchvision set that holds all images in one array."""
    arrays = {}
    for part in ("train", "test"):
        stored = kind(str(scratch), train=part == "train", download=True)
        arrays[f"{part}_images"] = np.asarray(stored.data)
        arrays[f"{part}_labels"] = np.asarray(stored.targets)
    return arrays


def _square(image: Image) -> Image:
    """The largest square in the middle."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _resized(image: Image, size: int) -> np.ndarray:
    from PIL.Image import Resampling

    return np.asarray(image.convert("RGB").resize((size, size), Resampling.BILINEAR))


def _stack(part: str, pictures: list[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
    images, labels = zip(*pictures, strict=True)
    return {f"{part}_images": np.stack(images), f"{part}_labels": np.asarray(labels)}
