"""Post-processing of a teacher's answers by an attacker who does not trust them.

``make(teacher, data) -> Oracle``: the teacher as an oracle whose log-probabilities pass through further
layers, so that distilling from it is plain distillation. ``data`` are the attacker's own images. Nothing
below ``FLOOR`` is read out of an answer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, ImageSet
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.oracle import Oracle, as_oracle

FLOOR = -50.0  # log of the smallest probability that an attacker makes anything of


class LogProbabilities(nn.Module):
    """Log-probabilities at temperature 1, float32, none below ``FLOOR``."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(1).clamp(min=FLOOR)


@checked
class KeepTop(nn.Module):
    """The ``keep`` largest log-probabilities stay, the other classes share what is left evenly."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def extra_repr(self) -> str:
        return f"keep={self.keep}"

    def forward(self, log_p: Tensor) -> Tensor:
        classes = log_p.shape[1]
        if not 1 <= self.keep < classes:
            raise KdsecError(f"keep={self.keep} of {classes} classes; choose 1 to {classes - 1}")
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, log_p.topk(self.keep).indices, True)
        left = log_p.masked_fill(kept, -torch.inf).logsumexp(1, keepdim=True)
        return torch.where(kept, log_p, left - math.log(classes - self.keep))


class Debias(nn.Module):
    """Log-probabilities minus an offset that depends on the decision: row c of ``offsets`` ``(K, K)``."""

    offsets: Tensor

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        self.register_buffer("offsets", offsets)

    def forward(self, log_p: Tensor) -> Tensor:
        return log_p - self.offsets[log_p.argmax(1)]


class Averaged(nn.Module):
    """Mean log-probabilities over the image and its four neighbours one pixel away: five queries an image."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.training = False  # its own mode only: .eval() would change the teacher's

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1))
        places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        moved = [padded[:, :, top : top + height, left : left + width] for top, left in places]
        answers = self.teacher(torch.cat(moved)).float().log_softmax(1).clamp(min=FLOOR)
        return answers.view(len(places), len(images), -1).mean(0)


def postprocess(teacher: nn.Module, *layers: nn.Module) -> Oracle:
    """An oracle of the teacher's log-probabilities, passed through ``layers``."""
    return as_oracle(teacher).through(LogProbabilities(), *layers)


@checked
def keep_top(teacher: nn.Module, data: ImageSet, keep: int) -> Oracle:
    """The largest ``keep`` probabilities; with 1 the negatives are dropped and the confidence is left."""
    return postprocess(teacher, KeepTop(keep))


@checked
def averaged(teacher: nn.Module, data: ImageSet) -> nn.Module:
    """Against answers that depend on single pixels."""
    return Averaged(as_oracle(teacher))


@checked
def mean_removed(teacher: nn.Module, data: ImageSet) -> Oracle:
    """Subtracts the mean answer: against a teacher that favours some classes on every image."""
    teacher = as_oracle(teacher)
    log_p = postprocess(teacher).query(data)
    return postprocess(teacher, Debias(log_p.mean(0).expand(log_p.shape[1], -1).contiguous()))


@checked
def class_mean_removed(teacher: nn.Module, data: ImageSet) -> Oracle:
    """Subtracts, for each decision, the mean profile of the *other* classes: what is the same for all sevens.

    The chosen class keeps its value and the others their common level, so the confidence stays.
    """
    teacher = as_oracle(teacher)
    log_p = postprocess(teacher).query(data)
    classes = log_p.shape[1]
    decided = F.one_hot(log_p.argmax(1), classes).float()
    means = decided.T @ log_p / decided.sum(0).clamp(min=1)[:, None]
    others = 1 - torch.eye(classes, device=log_p.device)
    level = (means * others).sum(1, keepdim=True) / (classes - 1)
    return postprocess(teacher, Debias((means - level) * others))


@checked
def linear_map(teacher: nn.Module, data: ImageSet, ridge: float = 0.1) -> Oracle:
    """A linear map of the log-probabilities, fitted to the attacker's labelled images.

    It minimises their cross-entropy plus ``ridge`` times its squared distance from the identity.
    """
    known = data.subset(data.labels != UNLABELLED)
    if not len(known):
        raise KdsecError(f"{data.name} has no labelled image; a linear map is fitted to some")
    teacher = as_oracle(teacher)
    log_p = postprocess(teacher).query(known)
    identity = torch.eye(log_p.shape[1], device=log_p.device)
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, len(identity), len(identity), device=log_p.device)
    with torch.no_grad():
        layer.weight.copy_(identity)
        layer.bias.zero_()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        away = (layer.weight - identity).square().sum() + layer.bias.square().sum()
        loss = F.cross_entropy(layer(log_p), known.labels) + ridge * away
        loss.backward()
        return loss

    optimizer.step(cost)
    return postprocess(teacher, layer.requires_grad_(False))
