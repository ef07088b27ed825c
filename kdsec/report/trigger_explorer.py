"""The explorer of backdoors: a trigger and a perturbation on stored images, each as strong as one wants.

The networks are asked beforehand, at every pair of strengths; the page looks their answers up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdsec.attacks.triggers import Trigger
from kdsec.data.imageset import to_bytes, to_float
from kdsec.errors import KdsecError
from kdsec.report.interactive import Live, check_labels, encoded, ink, picture
from kdsec.train import predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIGGERS = tuple(step / 10 for step in range(11))
PERTURBATIONS = tuple(step / 5 for step in range(6))


@dataclass(frozen=True, eq=False)
class Mixtures:
    r"""What networks answer to images with a share :math:`t` of a trigger and :math:`e` of a perturbation.

    .. math:: x_{t,e} = (1 - t\,m)\,x + t\,m\,r + e\,\delta, \qquad \delta = x' - B(x)

    The trigger has pattern r and mask m and makes B(x), the finished poison is x': (0, 0) is the image,
    (1, 0) the stamped image, (1, 1) the poison.

    Attributes:
        images: x, bytes ``(n, C, H, W)``.
        poisons: x', bytes of the same shape.
        mark: the trigger.
        probabilities: by name of the network, ``(n, len(TRIGGERS), len(PERTURBATIONS), K)``.
    """

    images: Tensor
    poisons: Tensor
    mark: Trigger
    probabilities: Mapping[str, Tensor]


def mixed(images: Tensor, poisons: Tensor, mark: Trigger, opacity: float, strength: float) -> Tensor:
    """The images at one pair of strengths, as the bytes ``(n, C, H, W)`` that a network is shown."""
    faint = dataclasses.replace(mark, mask=opacity * mark.mask)
    change = to_float(poisons) - to_float(mark.stamp(images))
    return to_bytes((faint.stamp(to_float(images)) + strength * change).clamp(0, 1))


def ask(models: Mapping[str, nn.Module], images: Tensor, poisons: Tensor, mark: Trigger) -> Mixtures:
    """Ask every network about every image at every pair of strengths.

    Raises:
        KdsecError: no networks or images, images and poisons of two shapes, or not in bytes.
    """
    if not models or not len(images):
        raise KdsecError("there is nothing to explore; give at least one network and one image")
    if images.shape != poisons.shape or not images.dtype == poisons.dtype == torch.uint8:
        shapes = f"{tuple(images.shape)} {images.dtype} and {tuple(poisons.shape)} {poisons.dtype}"
        raise KdsecError(f"images and poisons are {shapes}; give bytes (torch.uint8) of one shape")
    shown = torch.stack(
        [torch.stack([mixed(images, poisons, mark, t, e) for e in PERTURBATIONS]) for t in TRIGGERS]
    )  # (T, E, n, C, H, W)
    flat = shown.flatten(0, 2)
    answers = {
        name: predict(model, flat).softmax(1).unflatten(0, shown.shape[:3]).movedim(2, 0).cpu()
        for name, model in models.items()
    }
    return Mixtures(images, poisons, mark, answers)


def trigger_explorer(
    asked: Mixtures, labels: Tensor, target: int, classes: Sequence[str], *, still: Figure
) -> Live:
    """Images with sliders for trigger and perturbation, and what each network says of them.

    Args:
        asked: images and answers, from ``ask``.
        labels: true classes, ``(n,)``.
        target: the class that the attacker wants.
        classes: the K class names.
        still: what is shown where no script runs.

    Raises:
        KdsecError: a label or the target is no class, or the networks tell other numbers of classes apart.
    """
    count = len(classes)
    check_labels(labels, len(asked.images), count)
    if not 0 <= target < count:
        raise KdsecError(f"target {target} is no class; choose 0 to {count - 1}")
    for name, answers in asked.probabilities.items():
        if answers.shape[-1] != count:
            raise KdsecError(f"{name!r} tells {answers.shape[-1]} classes apart, and {count} names are given")
    images, poisons, mark = asked.images.cpu(), asked.poisons.cpu(), asked.mark
    gap = (poisons.int() - mark.stamp(images).int()).abs().amax()
    samples = [
        {
            "image": picture(images[item]),
            "label": int(labels[item]),
            "pixels": _bytes(images[item]),
            "poison": _bytes(poisons[item]),
            "answers": {name: _brief(p[item], target) for name, p in asked.probabilities.items()},
        }
        for item in range(len(images))
    ]
    data = {
        "classes": list(classes),
        "target": target,
        "arms": [{"name": name, "colour": ink(name)} for name in asked.probabilities],
        "triggers": TRIGGERS,
        "perturbations": PERTURBATIONS,
        "radius": max(1, int(gap)),
        "shape": list(images.shape[1:]),
        "pattern": _bytes(to_bytes(mark.pattern)),
        "mask": _bytes(to_bytes(mark.mask)),
        "samples": samples,
    }
    return Live("trigger", data, still)


def _brief(probabilities: Tensor, target: int) -> list[list[list[int]]]:
    """``(T, E, K)`` to the class answered, its probability and that of the target in thousandths."""
    said = probabilities.max(-1)
    parts = (said.indices, (1000 * said.values).round(), (1000 * probabilities[..., target]).round())
    return [[list(map(int, cell)) for cell in row] for row in torch.stack(parts, -1).tolist()]


def _bytes(image: Tensor) -> str:
    return encoded(image.contiguous().numpy().tobytes())
