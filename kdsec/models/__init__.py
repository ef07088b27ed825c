"""Networks by name, and other people's networks as teachers: float images in [0, 1] in, logits out.

>>> from kdsec import models
>>> teacher = models.build("resnet20", 10, (3, 32, 32), mean=[0.49] * 3, std=[0.25] * 3, seed=0)

To add a net, write a function ``(num_classes, shape) -> (stages, head)`` and one line in ``_NETS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice
from kdsec.models.autoencoder import Autoencoder
from kdsec.models.base import Body, Classifier, Normalize, Shape, count_parameters, seeded
from kdsec.models.fast import airbench, whiten
from kdsec.models.imagenet import imagenet, imagenet_names
from kdsec.models.mobile import mobilenetv2, shufflenetv2
from kdsec.models.plain import cnn, digits_cnn, digits_mlp, vgg
from kdsec.models.preact import resnetc, wide_resnet
from kdsec.models.residual_purifier import ResidualPurifier
from kdsec.models.resnet import cifar_resnet, resnet, resnext29
from kdsec.models.wrapping import wrap

__all__ = [
    "Autoencoder",
    "Classifier",
    "Normalize",
    "autoencoder_names",
    "build",
    "build_autoencoder",
    "count_parameters",
    "imagenet",
    "imagenet_names",
    "names",
    "whiten",
    "wrap",
]


class _Net(NamedTuple):
    make: Callable[[int, Shape], Body]
    smallest: int  # height and width below which the last stage would be empty


_NETS = {
    "digits-cnn": _Net(partial(digits_cnn, widths=(32, 64, 64)), 4),
    "digits-medium": _Net(partial(digits_cnn, widths=(16, 32, 32)), 4),
    "digits-small": _Net(partial(digits_cnn, widths=(4, 8, 8)), 4),
    "digits-mlp": _Net(digits_mlp, 1),
    "cnn": _Net(cnn, 8),
    "cnn-small": _Net(partial(cnn, widths=(16, 32, 64)), 8),
    "airbench-64": _Net(partial(airbench, widths=(64, 256, 256)), 9),
    "airbench-32": _Net(partial(airbench, widths=(32, 128, 128)), 9),
    "airbench-16": _Net(partial(airbench, widths=(16, 64, 64)), 9),
    "resnet8": _Net(partial(cifar_resnet, depth=8), 8),
    "resnet20": _Net(partial(cifar_resnet, depth=20), 8),
    "resnet32": _Net(partial(cifar_resnet, depth=32), 8),
    "resnetc20": _Net(partial(resnetc, depth=20), 8),
    "resnetc32": _Net(partial(resnetc, depth=32), 8),
    "resnet18": _Net(partial(resnet, blocks=(2, 2, 2, 2)), 16),
    "resnet34": _Net(partial(resnet, blocks=(3, 4, 6, 3)), 16),
    "resnet50": _Net(partial(resnet, blocks=(3, 4, 6, 3), bottleneck=True), 16),
    "resnext29": _Net(resnext29, 8),
    "mobilenetv2": _Net(mobilenetv2, 16),
    "shufflenetv2": _Net(shufflenetv2, 16),
    "wrn16-1": _Net(partial(wide_resnet, depth=16, widen=1), 8),
    "wrn16-2": _Net(partial(wide_resnet, depth=16, widen=2), 8),
    "wrn40-1": _Net(partial(wide_resnet, depth=40, widen=1), 8),
    "wrn40-2": _Net(partial(wide_resnet, depth=40, widen=2), 8),
    "vgg11": _Net(partial(vgg, depth=11), 32),
    "vgg16": _Net(partial(vgg, depth=16), 32),
}
_PURIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "autoencoder": partial(Autoencoder, widths=(32, 64, 64)),
    "autoencoder-small": partial(Autoencoder, widths=(16, 32, 32)),
    "residual-purifier": partial(ResidualPurifier, width=24),
}


def names() -> tuple[str, ...]:
    """Return every name ``build`` knows."""
    return tuple(_NETS)


def autoencoder_names() -> tuple[str, ...]:
    """Return every name ``build_autoencoder`` knows."""
    return tuple(_PURIFIERS)


@checked
def build(
    name: str,
    num_classes: int,
    shape: Sequence[int],
    *,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    seed: int | None = None,
) -> Classifier:
    """Build a classifier: float images (N, C, H, W) in [0, 1] to logits (N, ``num_classes``).

    Args:
        name: one of ``names()``.
        num_classes: at least 2.
        shape: (C, H, W) of one image.
        mean, std: per channel, of pixels in [0, 1], kept as buffers in the first layer; None: no
            normalisation.
        seed: of the initial weights; the net is then made on the CPU and the global generator stays as it is.
            None draws from the global generator.

    Raises:
        KdsecError: unknown name, fewer than two classes, an image too small for the net, or a
            normalisation that does not fit the channels.
    """
    net = _NETS[check_choice("model", name, names())]
    if num_classes < 2:
        raise KdsecError(f"a classifier needs at least 2 classes, got {num_classes}")
    channels, height, width = size = _checked(shape)
    if min(height, width) < net.smallest:
        fitting = [other for other in _NETS if _NETS[other].smallest <= min(height, width)]
        raise KdsecError(
            f"model {name!r} needs images of at least {net.smallest}x{net.smallest}, got "
            f"{height}x{width}; models that fit: {', '.join(fitting)}"
        )
    with seeded(seed):
        return Classifier(Normalize(channels, mean, std), *net.make(num_classes, size))


@checked
def build_autoencoder(name: str, shape: Sequence[int], *, seed: int | None = None) -> nn.Module:
    """Build a purifier: float images (N, C, H, W) in [0, 1] to images of the same shape in [0, 1].

    Args:
        name: one of ``autoencoder_names()``: a teacher, a student of half the width, and the purifier without
            a bottleneck.
        shape: (C, H, W) of one image; of an autoencoder H and W divisible by 4.
        seed: as in ``build``.

    Raises:
        KdsecError: unknown name, or a height or width that is not a multiple of 4.
    """
    make = _PURIFIERS[check_choice("autoencoder", name, autoencoder_names())]
    channels, height, width = _checked(shape)
    if name.startswith("autoencoder") and (height % 4 or width % 4):
        raise KdsecError(
            f"{name!r} needs a height and width divisible by 4, got {height}x{width}; pad the images"
        )
    with seeded(seed):
        return make(channels)


def _checked(shape: Sequence[int]) -> Shape:
    if len(shape) != 3 or min(shape) < 1:
        raise KdsecError(f"shape must be (channels, height, width), all at least 1; got {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width
