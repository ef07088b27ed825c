"""SSIM and MS-SSIM against an independent implementation in double precision, and what attacks rely on."""

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from kdsec.attacks import backdoor
from kdsec.attacks.similarity import change, dssim, ms_ssim, ssim
from kdsec.errors import KdsecError


def halve(image):
    height, width = (side // 2 for side in image.shape)
    return image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))


def reference(first, second, levels=5):
    """The formula of Wang, Simoncelli and Bovik, channel by channel, in bytes, by convolution."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:levels]
    weights = weights / weights.sum()
    values = []
    for x, y in zip(first, second, strict=True):
        channels = []
        for a, b in zip(x.double().numpy() * 255, y.double().numpy() * 255, strict=True):
            product = 1.0
            for level, weight in enumerate(weights):
                size = min(11, *a.shape)
                places = np.arange(size) - (size - 1) / 2
                line = np.exp(-(places**2) / (2 * (1.5 * size / 11) ** 2))
                window = np.outer(line, line) / line.sum() ** 2

                def blur(image, window=window):
                    return signal.convolve2d(image, window, mode="valid")

                mean_a, mean_b = blur(a), blur(b)
                var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
                cov = blur(a * b) - mean_a * mean_b
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                structure = (2 * cov + c2) / (var_a + var_b + c2)
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                last = level == levels - 1
                product *= max((luminance * structure if last else structure).mean(), 0) ** weight
                a, b = halve(a), halve(b)
            channels.append(product)
        values.append(np.mean(channels))
    return torch.tensor(values)


def images(height, width, channels=3, count=2, seed=0, noise=0.1):
    """Smooth random images and the same with noise."""
    draw = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(draw.random((count, channels, height, width)), (0, 0, 2, 2))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    other = np.clip(smooth + noise * draw.standard_normal(smooth.shape), 0, 1)
    return torch.tensor(smooth).float(), torch.tensor(other).float()


SIZES = [
    (180, 190, 5),
    (32, 32, 5),
    (48, 33, 5),
    (16, 16, 5),
    (16, 40, 1),
    (11, 11, 2),
    (8, 8, 3),
    (8, 8, 4),
    (7, 5, 3),
]


@pytest.mark.parametrize(("height", "width", "levels"), SIZES)
@pytest.mark.parametrize("noise", [0.003, 0.1, 1.0])
def test_ms_ssim_equals_the_reference(height, width, levels, noise):
    """Also where a level is smaller than the window, and where a side is odd."""
    first, second = images(height, width, noise=noise)
    assert torch.allclose(
        ms_ssim(first, second, levels).double(), reference(first, second, levels), atol=1e-4
    )


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_ms_ssim_equals_the_reference_on_unrelated_images(levels):
    """Their structure hardly agrees, and single levels come out negative."""
    first, second = torch.rand(2, 40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = reference(first, second, levels)
    assert torch.allclose(ms_ssim(first, second, levels).double(), expected, atol=1e-4)
    assert (expected == 0).any() and (expected > 0).any()


def test_small_distances_are_measured_exactly():
    """An attack's budget is a few thousandths: rounding of single precision must be far below."""
    first, second = images(32, 32, noise=0.002)
    exact = (1 - reference(first, second)) / 2
    assert exact.max() < 0.003
    assert torch.allclose(dssim(first, second).double(), exact, rtol=0.01, atol=0)


def test_properties_of_the_distance():
    first, second = images(32, 32)
    assert dssim(first, first).abs().max() == 0
    assert torch.allclose(dssim(first, second), dssim(second, first), atol=1e-6)
    assert (dssim(first, second) > 0).all() and (dssim(first, 1 - first) <= 0.5).all()
    nearer = (first + second) / 2
    assert (dssim(first, nearer) < dssim(first, second)).all()
    alone = torch.cat([dssim(a[None], b[None]) for a, b in zip(first, second, strict=True)])
    assert torch.allclose(dssim(first, second), alone, atol=1e-6)


def test_a_change_in_one_pixel_by_hand():
    first = torch.full((2, 1, 16, 16), 0.5)
    second = first.clone()
    second[:, :, 3, 3] += 51 / 255
    found = change(second, first, levels=1)
    assert found["largest change"] == pytest.approx(51, abs=1e-3)
    assert found["L2"] == pytest.approx(0.2, abs=1e-4)
    assert found["DSSIM"] == pytest.approx(dssim(second, first, 1).mean().item())


@pytest.mark.parametrize("case", ["equal", "unrelated", "black", "inverted"])
def test_the_gradient_is_finite(case):
    first = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    if case == "black":
        first = torch.zeros_like(first)
    second = (
        {"equal": first, "inverted": 1 - first, "black": first}.get(case, first.flip(3))
        .clone()
        .requires_grad_()
    )
    (slope,) = torch.autograd.grad(dssim(second, first).sum(), second)
    assert slope.isfinite().all()


def test_the_gradient_is_that_of_the_formula():
    first, second = (each.double() for each in images(12, 12, channels=1, count=1))
    second.requires_grad_()
    assert torch.autograd.gradcheck(lambda image: dssim(image, first, 3), second)


def test_square_windows_agree_with_the_formula_on_one_window():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 1, 7, 7, generator=generator)
    cov = torch.cov(torch.stack([x.flatten(), y.flatten()]))
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * x.mean() * y.mean() + c1) * (2 * cov[0, 1] + c2)
    bottom = (x.mean() ** 2 + y.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)
    assert ssim(x, y).item() == pytest.approx((top / bottom).item(), rel=1e-4)
    assert backdoor.visibility(y, x)["ssim"] == pytest.approx(ssim(x, y).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("levels", "message"), [(5, "levels to 4"), (0, "must be 1 to 5"), (6, "must be 1 to 5")]
)
def test_a_pyramid_that_does_not_fit_is_refused(levels, message):
    first = torch.rand(1, 1, 8, 12)
    with pytest.raises(KdsecError, match=message):
        ms_ssim(first, first, levels)
    assert ms_ssim(first, first, 4).item() == 1
