"""Taking a backdoor out of a student, with a few clean images and no knowledge of the trigger.

Four cures, which end in ordinary training on the clean images and so cost the same:

* fine-tuning: train on. The control for the other three.
* re-distillation: train on with the clean teacher's answers instead of labels; the defender of a distilled
  student has that teacher, and needs no labels then.
* fine-pruning (Liu, Dolan-Gavitt & Garg 2018, arXiv 1805.12185): first silence the channels that clean images
  leave dormant, where a backdoor may live; ``prune_dormant``.
* neural attention distillation (Li et al. 2021, arXiv 2101.05930): the fine-tuned student becomes the teacher
  of the backdoored one, which has to match its attention maps, stage by stage: ``AttentionTransfer`` of
  ``kdsec.distill``, with ``attention_distillation`` here.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.distill import AttentionTransfer
from kdsec.errors import KdsecError
from kdsec.models import Classifier


class Mask(nn.Module):
    """Multiply each channel by 0 or 1."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.float())

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, C, ...)`` to the same shape."""
        return features * self.kept.view(1, -1, *[1] * (features.ndim - 2))


def prune_dormant(model: Classifier, data: ImageSet, tolerance: float = 0.04) -> tuple[Classifier, int]:
    """A copy of ``model`` without the last stage's channels that ``data`` activates least.

    Channels go one by one, the least active first, for as long as accuracy on ``data`` stays within
    ``tolerance`` of where it was. Pruned channels stay silent in later training.

    Args:
        model: not changed.
        data: clean, labelled images.
        tolerance: accuracy that may be lost, as a share.

    Returns:
        The pruned copy and how many channels it lost.
    """
    if not 0 <= tolerance < 1:
        raise KdsecError(f"tolerance={tolerance} is not a share in [0, 1); 0.04 gives up four points")
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(to_float(part))[-1] for part in data.images.split(250)])
        activity = features.abs().transpose(0, 1).flatten(1).mean(1)
        kept = torch.ones_like(activity)
        least = _accuracy(model, features, kept, data.labels) - tolerance
        for channel in activity.argsort().tolist():
            attempt = kept.clone()
            attempt[channel] = 0
            if _accuracy(model, features, attempt, data.labels) < least:
                break
            kept = attempt
    pruned = copy.deepcopy(model)
    pruned.stages.append(Mask(kept))
    return pruned, int((kept == 0).sum())


def _accuracy(model: Classifier, features: Tensor, kept: Tensor, labels: Tensor) -> float:
    masked = Mask(kept).to(features.device)(features)
    return (model.head(masked).argmax(1) == labels).float().mean().item()


def attention_distillation(tuned: Classifier, weight: float = 10.0) -> AttentionTransfer:
    """The loss of neural attention distillation: labels, and the attention of the fine-tuned student.

    Args:
        tuned: a copy of the backdoored student after fine-tuning on clean images; does not change.
        weight: of the attention term, as in ``AttentionTransfer``.
    """
    tuned.eval()
    return AttentionTransfer(tuned, weight)
