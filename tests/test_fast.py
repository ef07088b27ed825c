"""Airbench networks and what their recipe needs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdsec import models
from kdsec.data import Augment, ImageSet, Loader
from kdsec.errors import KdsecError
from kdsec.models.fast import FLOOR, Whitening
from kdsec.train import CrossEntropy, Recipe, fit


@pytest.fixture(scope="module")
def pixels():
    """Smooth random images, whose neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(60, 3, 5, 5, generator=generator)
    return (255 * F.interpolate(coarse, (12, 12), mode="bilinear")).to(torch.uint8)


def labelled(pixels):
    return ImageSet(pixels, torch.arange(len(pixels)) % 4, tuple("abcd"), "smooth")


def test_whitened_patches_are_uncorrelated_and_their_filters_stay(pixels):
    net = models.build("airbench-16", 4, (3, 12, 12), mean=[0.5] * 3, std=[0.2] * 3, seed=0)
    models.whiten(net, pixels)
    (layer,) = [each for each in net.modules() if isinstance(each, Whitening)]
    found = layer(net.normalize(pixels / 255)).transpose(0, 1).flatten(1)
    half = len(found) // 2
    assert torch.allclose(found[:half], -found[half:], atol=1e-5)
    moments = found[:half] @ found[:half].T / found.shape[1]
    assert torch.allclose(moments - moments.diag().diag(), torch.zeros(half, half), atol=1e-3)
    assert moments.diag().max() <= 1 and moments.diag().min() > 0.95  # 1 but for the floor
    assert FLOOR < 1e-3
    before = layer.weight.clone()
    fit(net, labelled(pixels), Recipe(epochs=1, batch_size=20, optimizer="muon", lr=0.1, other_lr=0.01))
    assert torch.equal(layer.weight, before)
    with pytest.raises(KdsecError, match="whitening"):
        models.whiten(net, pixels[:0])


def test_filters_start_as_copies():
    net = models.build("airbench-16", 4, (3, 12, 12), seed=0)
    layers = [each for each in net.modules() if isinstance(each, torch.nn.Conv2d)][1:]
    for layer in layers:
        images = torch.rand(2, layer.in_channels, 6, 6)
        same = min(layer.in_channels, layer.out_channels)
        assert torch.allclose(layer(images)[:, :same], images[:, :same], atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 16.0])
def test_with_adam_beside_muon_the_scale_of_the_loss_does_not_matter(pixels, scale):
    recipe = Recipe(
        epochs=2,
        batch_size=20,
        optimizer="muon",
        lr=0.1,
        other_lr=0.01,
        weight_decay=0.0,
        precision="float32",
    )
    ends = []
    for factor in (1.0, scale):
        net = models.build("airbench-16", 4, (3, 12, 12), seed=0)
        fit(net, labelled(pixels), recipe, lambda model, batch, by=factor: by * CrossEntropy()(model, batch))
        ends.append(net(pixels / 255).detach())
    assert torch.allclose(*ends, atol=0.05 * ends[0].std().item())


def test_alternate_mirrors_every_image_in_each_second_epoch(pixels):
    data = labelled(pixels)
    loader = Loader(data, 20, augment=Augment(flip=True, alternate=True), seed=0)
    epochs = []
    for _ in range(3):
        mirrored = torch.zeros(len(data), dtype=torch.bool)
        for images, _, position in loader:
            plain = pixels[position] / 255
            flipped = (images - plain.flip(3)).abs().flatten(1).amax(1) < 1e-6
            assert (flipped | ((images - plain).abs().flatten(1).amax(1) < 1e-6)).all()
            mirrored[position] = flipped
        epochs.append(mirrored)
    assert torch.equal(epochs[0], ~epochs[1]) and torch.equal(epochs[0], epochs[2])
    assert 0.2 < epochs[0].float().mean() < 0.8


def test_reflected_borders_are_those_of_torch(pixels):
    loader = Loader(labelled(pixels), 20, augment=Augment(crop=2, reflect=True), seed=0)
    expected = F.pad(pixels.float(), (2,) * 4, mode="reflect").to(torch.uint8)
    assert torch.equal(loader.pixels.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augment(alternate=True), "flip=True"),
        (lambda: Recipe(other_lr=0.1), "muon"),
        (lambda: Recipe(optimizer="muon", other_lr=-1.0), "other_lr"),
        (
            lambda: Loader(labelled(torch.zeros(4, 3, 12, 12)), 2, augment=Augment(crop=12, reflect=True)),
            "12",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(make, words):
    with pytest.raises(KdsecError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
