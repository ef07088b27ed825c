"""The parts that all classifiers share: normalisation inside, stages, a head."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError

Shape = tuple[int, int, int]  # channels, height, width of one image
Body = tuple[list[nn.Module], nn.Module]  # the stages and the head a net is made of


class Normalize(nn.Module):
    """The first layer of every net: ``(images - mean) / std``, channel by channel.

    It is part of the model, so every attack works in pixels: an ``eps`` of 8/255 is 8/255 of a pixel's range,
    for every data set.

    Args:
        channels: number of image channels, C.
        mean: C values in [0, 1]; None means 0.
        std: C values in (0, 1]; None means 1.

    Raises:
        KdsecError: a wrong number of values, or values that are not in pixel units of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        means = _per_channel("mean", mean, channels, default=0.0)
        stds = _per_channel("std", std, channels, default=1.0)
        if min(stds) == 0:
            raise KdsecError(f"std {stds} has a zero; use 1 for a channel that never changes")
        self.register_buffer("mean", torch.tensor(means).view(1, channels, 1, 1))
        self.register_buffer("std", torch.tensor(stds).view(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, C, H, W) in [0, 1] to zero mean and unit variance per channel.

        Raises:
            KdsecError: integer images, or a channel count the net was not built for. Both would
                broadcast to something plausible and wrong.
        """
        channels = self.mean.shape[1]
        if images.ndim != 4 or images.shape[1] != channels:
            raise KdsecError(
                f"this model takes images of shape (N, {channels}, H, W), got "
                f"{tuple(images.shape)}; build the model for the data's own shape"
            )
        if not images.is_floating_point():
            raise KdsecError(
                f"this model takes float images in [0, 1], got {images.dtype}; "
                "divide by 255 if they are bytes"
            )
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A net that maps float images (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Args:
        normalize: the first layer.
        stages: the parts of the body, in order. Attention transfer matches their outputs.
        head: maps the last stage's output to logits.
    """

    def __init__(self, normalize: nn.Module, stages: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.stages = nn.Sequential(*stages)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of float images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.stages(self.normalize(images)))
        return logits

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage, first to last, each (N, C, H, W), or (N, width) in a perceptron.

        ``model.head(model.features(images)[-1])`` equals ``model(images)``.
        """
        outputs = [self.normalize(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


def check_stages(model: Any, purpose: str) -> None:
    """Refuse a network whose stages cannot be read: it needs ``features(images) -> list`` and ``head``.

    Raises:
        KdsecError: says what to give instead.
    """
    features = getattr(model, "features", None)
    if isinstance(features, nn.Module) or not callable(features) or not hasattr(model, "head"):
        hint = (
            "give its .module" if isinstance(model, nn.DataParallel) else "build one with kdsec.models.build"
        )
        raise KdsecError(
            f"{purpose} must be a kdsec Classifier, or have features(images) -> list of stages and a head; "
            f"this {type(model).__name__} has not: {hint}"
        )


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Make random numbers a pure function of ``seed``; with None, change nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also reseed a GPU that fork_rng does not restore.
        torch.default_generator.manual_seed(seed)
        yield


def _per_channel(
    name: str, values: Sequence[float] | Tensor | None, channels: int, default: float
) -> list[float]:
    if values is None:
        return [default] * channels
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise KdsecError(f"{name}={values!r:.40} must be a list of numbers, one for each channel") from None
    if len(numbers) != channels:
        raise KdsecError(f"{name} has {len(numbers)} values for {channels} channels; give one each")
    if not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers):
        raise KdsecError(f"{name} {numbers} is not in pixel units of [0, 1]; divide by 255 if in bytes")
    return numbers
