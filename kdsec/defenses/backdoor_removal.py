"""Removing a backdoor from a student, with a few clean images and no knowledge of the trigger.

Four methods, which end in ordinary training on the clean images and so cost the same:

* fine-tuning: train on. The control for the other three.
* re-distillation: train on with the clean teacher's answers instead of labels.
* fine-pruning (Liu, Dolan-Gavitt & Garg 2018, arXiv 1805.12185): first silence the channels that clean images
  leave dormant, where a backdoor may sit; ``prune_dormant``.
* neural attention distillation (Li et al. 2021, arXiv 2101.05930): the fine-tuned student becomes the teacher
  of the backdoored one, which has to match its attention maps stage by stage; ``attention_distillation``.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.distill import AttentionTransfer
from kdsec.entry import checked
from kdsec.errors import check_number
from kdsec.models import Classifier
from kdsec.models.base import check_stages
from kdsec.train import evaluating


class Mask(nn.Module):
    """Multiply each channel by 0 or 1."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.float())

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, C, ...)`` to the same shape."""
        return features * self.kept.view(1, -1, *[1] * (features.ndim - 2))


@checked(some=["data"])
def prune_dormant(model: Classifier, data: ImageSet, tolerance: float = 0.04) -> tuple[Classifier, int]:
    """A copy of ``model`` without the last stage's channels that ``data`` activates least.

    Channels go one by one, the least active first, for as long as accuracy on ``data`` stays within
    ``tolerance`` of where it was. Pruned channels stay silent in later training.

    Args:
        model: not changed.
        data: clean, labelled images.
        tolerance: accuracy that may be lost, in [0, 1).

    Returns:
        The pruned copy, in eval mode, and how many channels it lost.
    """
    check_number("tolerance", tolerance, least=0, below=1)
    check_stages(model, "a network to prune")
    with torch.no_grad(), evaluating(model):
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
    pruned = copy.deepcopy(model).eval()
    pruned.stages.append(Mask(kept))
    return pruned, int((kept == 0).sum())


def _accuracy(model: Classifier, features: Tensor, kept: Tensor, labels: Tensor) -> float:
    masked = Mask(kept).to(features.device)(features)
    return (model.head(masked).argmax(1) == labels).float().mean().item()


@checked
def attention_distillation(tuned: Classifier, weight: float = 10.0) -> AttentionTransfer:
    """The loss of neural attention distillation: labels, and the attention of the fine-tuned student.

    Args:
        tuned: a copy of the backdoored student after fine-tuning on clean images; does not change.
        weight: of the attention term, as in ``AttentionTransfer``.
    """
    return AttentionTransfer(tuned, weight)
