"""Purifiers without training: each does to an image what its name says."""

import io

import pytest
import torch

from kdsec import data
from kdsec.defenses.transformations import JPEG, BitDepth, Blur, Median, RandomNoise
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint

ALL = [BitDepth(3), Median(3), Blur(0.8), JPEG(75), RandomNoise(0.1)]


@pytest.fixture
def images():
    return torch.rand(5, 3, 13, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transformation", ALL, ids=lambda each: type(each).__name__)
def test_images_stay_images(images, transformation):
    made = transformation(images)
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1 and made.isfinite().all()
    assert not torch.equal(made, images)


@pytest.mark.parametrize("transformation", ALL[1:4], ids=lambda each: type(each).__name__)
def test_a_grey_image_stays_grey(transformation):
    grey = torch.full((2, 1, 8, 8), 128 / 255)
    assert torch.allclose(transformation(grey), grey, atol=1e-5)


def test_bit_depth_leaves_so_many_levels(images):
    for bits in (1, 3, 8):
        assert BitDepth(bits)(images).unique().numel() <= 2**bits
    made = BitDepth(8)(images)
    assert torch.equal(BitDepth(8)(made), made) and (made - images).abs().max() <= 0.5 / 255 + 1e-6


def test_median_removes_single_pixels():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1
    assert torch.equal(Median(3)(image), torch.zeros_like(image))
    block = torch.zeros(1, 1, 8, 8)
    block[..., 2:6, 2:6] = 1
    assert Median(3)(block)[0, 0, 3, 3] == 1 and torch.equal(Median(1)(block), block)


def test_blur_keeps_the_mean_inside_and_smooths(images):
    image = torch.zeros(1, 1, 21, 21)
    image[0, 0, 10, 10] = 1
    made = Blur(1.0)(image)
    assert made.sum().item() == pytest.approx(1, abs=1e-5) and torch.allclose(made, made.transpose(2, 3))
    spread = (made[0, 0].sum(0) * (torch.arange(21.0) - 10).square()).sum().item()
    assert spread == pytest.approx(1.0, abs=0.05)  # sigma squared
    assert Blur(2.0)(images).var() < Blur(0.5)(images).var() < images.var()


def test_jpeg_is_what_the_common_encoder_does_to_a_grey_image():
    """Pillow's encoder, but for its rounding to bytes on the way."""
    image_module = pytest.importorskip("PIL.Image")
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(24.0), indexing="ij")
    smooth = ((x / 24 + (y / 5).sin()) * 60 + 90).round().clamp(0, 255)
    for quality in (20, 75, 95):
        stream = io.BytesIO()
        image_module.fromarray(smooth.byte().numpy()).save(stream, "JPEG", quality=quality)
        theirs = torch.tensor(list(image_module.open(stream).tobytes())).view(32, 24)
        ours = JPEG(quality)(smooth[None, None] / 255)[0, 0] * 255
        assert (ours - theirs).abs().max().item() <= 2.5 and (ours - theirs).abs().mean().item() < 0.5


def test_jpeg_loses_more_at_lower_quality(images):
    error = [(JPEG(quality)(images) - images).square().mean().item() for quality in (10, 50, 90, 100)]
    assert error == sorted(error, reverse=True) and error[-1] < 1e-3
    again = JPEG(50)(JPEG(50)(images[..., :8, :8]))
    assert (again - JPEG(50)(images[..., :8, :8])).abs().mean() < 0.01  # what is rounded stays rounded


def test_noise_is_seeded_and_other_each_time(images):
    one, two = RandomNoise(0.1, seed=1), RandomNoise(0.1, seed=1)
    first = one(images)
    assert torch.equal(first, two(images)) and not torch.equal(first, one(images))
    middle = torch.full((20, 1, 16, 16), 0.5)
    assert (one(middle) - 0.5).std().item() == pytest.approx(0.1, rel=0.05)


def test_settings_are_part_of_the_fingerprint():
    made = [BitDepth(2), BitDepth(3), Median(3), Median(5), Blur(1), Blur(2), JPEG(50), JPEG(60)]
    made += [RandomNoise(0.1), RandomNoise(0.1, seed=1)]
    assert len({fingerprint(each) for each in made}) == len(made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitDepth(0), "bits=0; choose 1 to 8"),
        (lambda: BitDepth(9), "bits=9"),
        (lambda: Median(0), "size=0; choose 1 or more"),
        (lambda: Median(-1), "size=-1"),
        (lambda: Blur(0.0), "sigma=0.0 must be above 0"),
        (lambda: JPEG(0), "quality=0; choose 1 to 100"),
        (lambda: JPEG(101), "quality=101"),
        (lambda: RandomNoise(0.0), "sigma=0 must be above 0"),
        (lambda: RandomNoise(8.0), "sigma=8 .*divide by 255"),
    ],
)
def test_bad_settings_end_in_one_line(make, message):
    with pytest.raises(KdsecError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_on_real_digits_a_mild_transformation_changes_little():
    images = data.load("digits").test.float_images(slice(0, 50))
    assert (BitDepth(4)(images) - images).abs().max() <= 0.5 / 15 + 1e-6
