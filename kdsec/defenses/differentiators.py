r"""Distilled differentiators: small pruned classifiers that must confirm the student's decision.

After Wu et al. 2023, "Defeating Misclassification Attacks Against Transfer Learning" (arXiv 1908.11230, IEEE
TDSC 20(2)). **A reconstruction** from the paper's abstracts. They name activation-based pruning, retraining
in a fine-tuned manner, an ensemble and inference in two phases. Losses, ratios and thresholds are this
module's.

A differentiator separates the classes of its *group*, usually two. It starts as the student, is pruned of the
channels that its classes use least, and is retrained with *all* of its weights. Attacks on the public
teacher's features target the student's frozen layers, which a differentiator no longer has.

1. The student decides on a class c.
2. Of the differentiators whose group contains c, m are asked. The score is the smallest probability of c
   among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec import train
from kdsec.data import ImageSet
from kdsec.defenses.pruning import RANKINGS, prune
from kdsec.defenses.rejection import RejectorOutput
from kdsec.distill import KD
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.layered import LayeredClassifier, select_classes
from kdsec.train import Loss, Recipe, evaluating, predict

Group = tuple[int, ...]
Fit = Callable[[str, nn.Module, ImageSet, Recipe, Loss | None], nn.Module]


@checked
@dataclass(frozen=True)
class DifferentiatorConfig:
    """Settings for making a differentiator from the student.

    Attributes:
        recipe: of the retraining.
        ratio: share of the channels that is removed.
        ranking: which are removed first, see ``kdsec.defenses.pruning.RANKINGS``.
        alpha: weight of the student's logits in the retraining; 0 is labels alone.
        temperature: of the distillation.
        retrain: ``all`` weights, or only the ``head`` (a control: the attacked layers stay).
    """

    recipe: Recipe
    ratio: float = 0.5
    ranking: str = "activation"
    alpha: float = 0.0
    temperature: float = 4.0
    retrain: str = "all"

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, least=0, below=1)
        check_choice("ranking", self.ranking, RANKINGS)
        check_choice("retrain", self.retrain, ("all", "head"))


@checked
def pairs(num_classes: int) -> list[Group]:
    """All pairs of classes, so that every possible confusion has a differentiator that knows both."""
    if num_classes < 2:
        raise KdsecError(f"{num_classes} class is too few; differentiators need 2 or more")
    return list(itertools.combinations(range(num_classes), 2))


def start(
    student: LayeredClassifier, group: Group, images: Tensor, making: DifferentiatorConfig, seed: int = 0
) -> LayeredClassifier:
    """The untrained differentiator: the pruned student, its head restricted to the group.

    Args:
        student: not changed.
        group: classes.
        images: of the group, to rank channels by.
        making: ratio, ranking and ``retrain``.
        seed: of a random ranking.
    """
    net = prune(student, images, making.ratio, making.ranking, seed)
    head = nn.Linear(net.head.in_features, len(group)).to(images.device)
    with torch.no_grad():
        head.weight.copy_(net.head.weight[list(group)])
        head.bias.copy_(net.head.bias[list(group)])
    frozen = net.depth if making.retrain == "head" else 0
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    return LayeredClassifier(net.normalize, list(net.stages), head, frozen)


class Restricted(nn.Module):
    """The student's logits of some classes only."""

    def __init__(self, student: nn.Module, group: Group):
        super().__init__()
        self.student = student
        self.group = list(group)

    def extra_repr(self) -> str:
        """Show the classes, for the fingerprint."""
        return f"group={self.group}"

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, classes of the group)``."""
        return self.student(images)[:, self.group]


@checked
def build(
    student: LayeredClassifier,
    data: ImageSet,
    which: Sequence[Group],
    making: DifferentiatorConfig,
    *,
    fit: Fit | None = None,
    seed: int = 0,
) -> DifferentiatorEnsemble:
    """Train a differentiator for each group, and return the ensemble.

    Args:
        student: to be protected; left as it was.
        data: its training images.
        which: classes of each differentiator, from ``pairs``.
        making: settings.
        fit: trains or reads from the cache, e.g. ``run.fit``; None trains in place.
        seed: of a random ranking and, without ``fit``, of the training.

    Raises:
        KdsecError: no groups, or a group with a class that has no images.
    """
    if not which:
        raise KdsecError("there are no groups to build differentiators for; see pairs()")
    nets: list[nn.Module] = []
    with evaluating(student):
        for place, group in enumerate(which):
            part = select_classes(data, group)
            net = start(student, group, part.images, making, seed=seed * 100_003 + place)
            loss: Loss | None = None
            if making.alpha:
                loss = KD(Restricted(student, group).eval(), making.temperature, making.alpha)
            if fit is None:
                train.fit(net, part, making.recipe, loss, seed=seed)
            else:
                fit("differentiator", net, part, making.recipe, loss)
            nets.append(net.eval())
    return DifferentiatorEnsemble(student, list(which), nets)


@dataclass(frozen=True, eq=False)
class DifferentiatorEnsemble:
    """The student and its differentiators, a rejector.

    Attributes:
        student: decides.
        which: the group of each differentiator.
        nets: the differentiators, logits ``(N, classes of the group)``.
        members: m, how many are asked: those whose other classes are likeliest for the student. None asks all
            whose group contains the decision.
    """

    student: nn.Module
    which: list[Group]
    nets: list[nn.Module]
    members: int | None = None

    def __post_init__(self) -> None:
        if self.members is not None and self.members < 1:
            raise KdsecError(f"members={self.members}: ask at least 1 differentiator, or None for all")
        if not self.which or len(self.which) != len(self.nets):
            raise KdsecError(f"{len(self.which)} groups for {len(self.nets)} differentiators; give one each")

    def verifiers(self) -> dict[int, list[tuple[nn.Module, int]]]:
        """For each class: the differentiators that know it, and the index of the class in each."""
        table: dict[int, list[tuple[nn.Module, int]]] = {}
        for group, net in zip(self.which, self.nets, strict=True):
            for place, label in enumerate(group):
                table.setdefault(label, []).append((net, place))
        return table

    @checked
    def predict_with_score(self, images: Tensor) -> RejectorOutput:
        """Decisions of the student, and the least probability of each among the differentiators asked.

        Raises:
            KdsecError: a decision that no differentiator knows.
        """
        logits = predict(self.student, images)
        decision = logits.argmax(1)
        beliefs = self._beliefs(images, decision)
        asked = self._asked(logits, decision, ~beliefs.isnan())
        if bool((unknown := ~asked.any(1)).any()):
            raise KdsecError(
                f"no differentiator knows class {int(decision[unknown][0])}; build one whose group holds it"
            )
        return RejectorOutput(decision, beliefs.masked_fill(~asked, 1.0).amin(1))

    def _beliefs(self, images: Tensor, decision: Tensor) -> Tensor:
        """Probability of the decision ``(N, differentiators)``; not a number where it is not known."""
        chance = torch.full((len(images), len(self.nets)), torch.nan, device=decision.device)
        for column, (group, net) in enumerate(zip(self.which, self.nets, strict=True)):
            for place, label in enumerate(group):
                rows = (decision == label).nonzero().squeeze(1)
                if len(rows):
                    chance[rows, column] = predict(net, images[rows]).softmax(1)[:, place]
        return chance

    def _asked(self, logits: Tensor, decision: Tensor, knows: Tensor) -> Tensor:
        """``(N, differentiators)``: who is asked about each input."""
        if self.members is None:
            return knows
        rivals = logits.softmax(1).scatter(1, decision[:, None], 0.0)
        rank = torch.stack([rivals[:, list(group)].sum(1) for group in self.which], 1)
        best = rank.masked_fill(~knows, -1.0).topk(min(self.members, len(self.nets)), dim=1).indices
        return knows & torch.zeros_like(knows).scatter(1, best, True)
