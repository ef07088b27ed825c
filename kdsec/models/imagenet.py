"""Networks with published ImageNet weights: public teachers for transfer learning.

The nets are rebuilt from this package's blocks, so that they divide into layers and channels like every other
net here. VGG-16 and ResNet-50 have torchvision's weights, which are downloaded; they take pixels in [0, 1] of
any size from 32x32 up. EfficientNet-Lite0 has those of a package; the number in its name is the size to which
it scales its images.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError, check_choice
from kdsec.models.base import Body, Classifier, Normalize, seeded
from kdsec.models.efficientnet import ScaledInput, lite0, lite0_weights
from kdsec.models.layers import conv_bn, pool_head
from kdsec.models.plain import VGG_GROUPS, VGG_WIDTHS
from kdsec.models.resnet import residual_stages

CLASSES = 1000
SIZES = (64, 96, 128, 224)  # of EfficientNet-Lite0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_names() -> tuple[str, ...]:
    """Return every name ``imagenet`` knows."""
    return tuple(_NETS)


def imagenet(
    name: str, num_classes: int = CLASSES, *, weights: bool = True, seed: int | None = None
) -> Classifier:
    """A classifier of colour photographs, float images (N, 3, H, W) in [0, 1], in eval mode.

    Args:
        name: one of ``imagenet_names()``.
        num_classes: 1,000 with the published weights.
        weights: the published ones, from where torch keeps downloads (``TORCH_HOME``), from the internet, or
            from an installed package. If False, random initial weights.
        seed: of the initial weights, as in ``kdsec.models.build``.

    Raises:
        KdsecError: unknown name, another number of classes than the weights have, or weights that are
            neither on this machine nor downloadable, or not the published ones.
    """
    make, published, first = _NETS[check_choice("published model", name, imagenet_names())]
    if weights and num_classes != CLASSES:
        raise KdsecError(
            f"the published {name} has {CLASSES} classes, not {num_classes}; "
            "kdsec.layered.transfer gives it a head for yours, weights=False random weights"
        )
    with seeded(seed):
        net = Classifier(first(), *make(num_classes))
    if weights:
        # Published files hold the same tensors in the order of the same modules, under other names.
        own = net.state_dict()
        names = [key for key in own if not key.startswith("normalize.")]
        net.load_state_dict({**own, **dict(zip(names, published().values(), strict=True))})
    return net.eval()


def _vgg16(num_classes: int) -> Body:
    """VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, column D), three linear layers."""
    stages: list[nn.Module] = []
    inputs = 3
    for width, count in zip(VGG_WIDTHS, VGG_GROUPS[16], strict=True):
        layers: list[nn.Module] = []
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        *(nn.Linear(inputs * 7 * 7, 4096), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
        nn.Linear(4096, num_classes),
    )
    return stages, head


def _resnet50(num_classes: int) -> Body:
    """ResNet-50 (He et al. 2016, arXiv:1512.03385, table 1), the stride in the 3x3 as torchvision has it."""
    stem = nn.Sequential(conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
    stages, width = residual_stages(64, (3, 4, 6, 3), bottleneck=True)
    return [stem, *stages], pool_head(width, num_classes)


class _Net(NamedTuple):
    make: Callable[[int], Body]
    published: Callable[[], dict[str, Tensor]]
    first: Callable[[], nn.Module] = partial(Normalize, 3, MEAN, STD)


def _published(name: str, published: str) -> dict[str, Tensor]:
    """The published tensors in the order of the modules, from torch's folder of downloads or the internet.

    The file must have the SHA-256 that its name begins with, and is read without unpickling objects.
    """
    from torchvision.models import get_model, get_weight

    url = get_weight(published).url
    file = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    expected = file.stem.rsplit("-", 1)[1]
    if not file.exists():
        _download(name, url, file, expected)
    found = file_sha256(file)
    if not found.startswith(expected):
        raise KdsecError(
            f"{file} is not the published file of weights (its SHA-256 starts {found[:8]}, not {expected}); "
            "move it elsewhere and try again, which downloads the published one"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            net = get_model(name.partition("-")[0])
        net.load_state_dict(without_prefix(state), assign=True)
    except Exception as error:  # torch.load raises many types
        raise KdsecError(f"{file} does not hold the weights of {name} ({type(error).__name__})") from None
    return dict(net.state_dict())


def _download(name: str, url: str, file: pathlib.Path, expected: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=expected, progress=False)
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise KdsecError(
            f"cannot download the weights of {name} ({reason}); without internet, put {file.name} (from "
            f"{url}) into {file.parent}, or choose a model that is trained here"
        ) from None


def file_sha256(file: pathlib.Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise KdsecError(f"{file} cannot be read ({error.strerror})") from None


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict without the ``module.`` that DataParallel puts before every name."""
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


_NETS = {
    "vgg16-imagenet": _Net(_vgg16, partial(_published, "vgg16-imagenet", "VGG16_Weights.IMAGENET1K_V1")),
    "resnet50-imagenet": _Net(
        _resnet50, partial(_published, "resnet50-imagenet", "ResNet50_Weights.IMAGENET1K_V1")
    ),
} | {f"efficientnet-lite0-{size}": _Net(lite0, lite0_weights, partial(ScaledInput, size)) for size in SIZES}
