"""Two nets as they are published, with weights learnt on ImageNet: whoever transfers starts from these.

The weights are torchvision's. The nets are rebuilt from this package's own blocks, so that they come apart
into layers and channels like every other net here, and take pixels in [0, 1] of any size from 32x32 up.
"""

from __future__ import annotations

import pathlib
import pickle

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError, choose
from kdsec.models.base import Body, Classifier, Normalize, seeded
from kdsec.models.layers import conv_bn, pool_head
from kdsec.models.plain import VGG_GROUPS, VGG_WIDTHS
from kdsec.models.resnet import residual_stages

CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_names() -> tuple[str, ...]:
    """Return every name ``imagenet`` knows."""
    return tuple(_NETS)


def imagenet(
    name: str, num_classes: int = CLASSES, *, weights: bool = True, seed: int | None = None
) -> Classifier:
    """A net for colour photographs, float images (N, 3, H, W) in [0, 1], in eval mode.

    Args:
        name: one of ``imagenet_names()``.
        num_classes: 1,000 with the published weights.
        weights: download them, or read them where torch keeps downloads (``TORCH_HOME``). If not, the same
            net with fresh ones.
        seed: of fresh weights, as in ``kdsec.models.build``.

    Raises:
        KdsecError: unknown name, another number of classes than the weights have, or weights that are
            neither here nor to be had.
    """
    make, published = _NETS[choose("published model", name, imagenet_names())]
    if weights and num_classes != CLASSES:
        raise KdsecError(
            f"the published {name} tells {CLASSES} classes apart, not {num_classes}; "
            "kdsec.transfer.transfer gives it a head for yours, weights=False fresh weights"
        )
    with seeded(seed):
        net = Classifier(Normalize(3, MEAN, STD), *make(num_classes))
    if weights:
        # torchvision's modules hold the same tensors in the same order under other names.
        own = [tensor for key, tensor in net.state_dict().items() if not key.startswith("normalize.")]
        with torch.no_grad():
            for tensor, theirs in zip(own, _published(name, published).values(), strict=True):
                tensor.copy_(theirs)
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


_NETS = {
    "vgg16-imagenet": (_vgg16, "VGG16_Weights.IMAGENET1K_V1"),
    "resnet50-imagenet": (_resnet50, "ResNet50_Weights.IMAGENET1K_V1"),
}


def _published(name: str, published: str) -> dict[str, Tensor]:
    """The published tensors in the order of the modules, from torch's folder of downloads or the internet."""
    from torchvision.models import get_model, get_weight

    weights = get_weight(published)
    file = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    try:
        return dict(get_model(name.partition("-")[0], weights=weights, progress=False).state_dict())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if file.exists():
            raise KdsecError(f"{file} is damaged ({reason}); delete it and try again") from None
        raise KdsecError(
            f"cannot download the weights of {name} ({reason}); without internet, put {file.name} (from "
            f"{weights.url}) into {file.parent}, or choose a model that is trained here"
        ) from None
