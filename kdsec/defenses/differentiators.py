r"""Distilled differentiators: before the student's answer counts, small specialists must agree with it.

After Wu et al. 2023, "Defeating Misclassification Attacks Against Transfer Learning" (arXiv 1908.11230, IEEE
TDSC 20(2)). **A reconstruction:** it follows the paper's abstracts, which name activation-based pruning,
retraining in a fine-tuned manner, an ensemble and inference in two phases, and give no losses, ratios or
thresholds; those are choices of this module.

A differentiator tells the few classes of its *group* apart, two in the plain case. It begins as the student,
loses the channels that its classes use least, and then learns again with *all* of its weights. An attack on
the public teacher's features was made for the student's frozen layers, and these are no longer those.

1. The student decides on a class c.
2. Of the differentiators whose group has c in it, a small number m is asked. The score is the least
   probability of c that any of them gives (``unanimous``), their mean, or the share that votes for c.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec import train
from kdsec.data import ImageSet
from kdsec.defenses.pruning import prune
from kdsec.defenses.rejection import Judged
from kdsec.distill import KD
from kdsec.errors import KdsecError, choose
from kdsec.train import Loss, Recipe, predict
from kdsec.transfer import Student, only

RULES = ("unanimous", "mean", "vote")
SELECTIONS = ("runner-up", "fixed", "random")
Group = tuple[int, ...]
Fit = Callable[[str, nn.Module, ImageSet, Recipe, Loss | None], nn.Module]


@dataclass(frozen=True)
class Making:
    """How a differentiator is made from the student.

    Attributes:
        recipe: of the retraining.
        ratio: share of the channels that goes.
        ranking: which go first, see ``kdsec.defenses.pruning.RANKINGS``.
        alpha: weight of the student's own answers in the retraining; 0 is labels alone.
        temperature: of those answers.
        retrain: ``all`` weights, or only the ``head`` (a control: the body keeps what was attacked).
    """

    recipe: Recipe
    ratio: float = 0.5
    ranking: str = "activation"
    alpha: float = 0.0
    temperature: float = 4.0
    retrain: str = "all"

    def __post_init__(self) -> None:
        choose("retrain", self.retrain, ("all", "head"))


def pairs(num_classes: int, protect: Sequence[int] | None = None) -> list[Group]:
    """All pairs of classes; with ``protect``, those that hold a protected class."""
    _check_classes(num_classes, protect)
    every = itertools.combinations(range(num_classes), 2)
    return [pair for pair in every if protect is None or set(pair) & set(protect)]


def groups(num_classes: int, size: int, near: Tensor | None = None, seed: int = 0) -> list[Group]:
    """Groups of ``size`` classes in which every two classes meet.

    Greedy: as long as two classes have not met, they found a group, filled up with the classes that have met
    the fewest of its members; among equals, the nearest to its founders, or any.

    Args:
        num_classes: K.
        size: from 2 (all pairs) to K (one group).
        near: distances of the classes ``(K, K)``, of their mean features for instance; None draws.
        seed: of the drawing.
    """
    _check_classes(num_classes, None)
    if not 2 <= size <= num_classes:
        raise KdsecError(f"size={size} of a group must be 2 to {num_classes}, the number of classes")
    if near is None:
        near = torch.rand(num_classes, num_classes, generator=torch.Generator().manual_seed(seed))
    met = torch.eye(num_classes, dtype=torch.bool)
    made: list[Group] = []
    for founders in itertools.combinations(range(num_classes), 2):
        if met[founders]:
            continue
        members = list(founders)
        while len(members) < size:
            rest = [each for each in range(num_classes) if each not in members]
            members.append(
                min(rest, key=lambda each: (int(met[each, members].sum()), float(near[each, members].sum())))
            )
        met[torch.tensor(members)[:, None], torch.tensor(members)] = True
        made.append(tuple(sorted(members)))
    return made


def start(student: Student, group: Group, images: Tensor, making: Making, seed: int = 0) -> Student:
    """The untrained differentiator: the student without idle channels, its head cut down to the group.

    Args:
        student: not changed.
        group: classes.
        images: of the group, to rank channels by.
        making: ratio, ranking, and what will learn.
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
    return Student(net.normalize, list(net.stages), head, frozen)


def _check_classes(num_classes: int, protect: Sequence[int] | None) -> None:
    if num_classes < 2:
        raise KdsecError(f"{num_classes} class cannot be told from another; differentiators need 2 or more")
    if protect is not None and (not protect or not all(0 <= each < num_classes for each in protect)):
        raise KdsecError(f"protect={list(protect)}: name some of the classes 0 to {num_classes - 1}")


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


def build(
    student: Student,
    data: ImageSet,
    which: Sequence[Group],
    making: Making,
    *,
    fit: Fit | None = None,
    seed: int = 0,
) -> Committee:
    """Make a differentiator for each group, and the committee of them all.

    Args:
        student: to be protected; in eval mode afterwards.
        data: its training images.
        which: from ``pairs`` or ``groups``.
        making: how.
        fit: ``run.fit`` for instance, which trains or fetches from the cache; trains in place if not given.
        seed: of a random ranking and, without ``fit``, of the training.

    Raises:
        KdsecError: no groups, or a group with a class that has no images.
    """
    if not which:
        raise KdsecError("there are no groups to build differentiators for; see pairs() and groups()")
    student.eval()
    nets: list[nn.Module] = []
    for place, group in enumerate(which):
        part = only(data, group)
        net = start(student, group, part.images, making, seed=seed * 100_003 + place)
        loss: Loss | None = None
        if making.alpha:
            loss = KD(Restricted(student, group).eval(), making.temperature, making.alpha)
        if fit is None:
            train.fit(net, part, making.recipe, loss, seed=seed)
        else:
            fit("differentiator", net, part, making.recipe, loss)
        nets.append(net.eval())
    return Committee(student, list(which), nets)


@dataclass(frozen=True, eq=False)
class Committee:
    """The student and its differentiators: a rejector. ``dataclasses.replace`` asks them in another way.

    Attributes:
        student: decides.
        which: the group of each differentiator.
        nets: the differentiators, logits ``(N, classes of the group)``.
        members: m, how many are asked; None asks all that know the decision.
        rule: ``unanimous``, ``mean`` or ``vote``.
        selection: which m of those that know the decision: those whose other classes the student finds most
            likely (``runner-up``), the same for every input (``fixed``), or others each time (``random``).
        protect: only these decisions are checked (protection against targeted attacks); others score 1.
        seed: of ``fixed`` and ``random``.
    """

    student: nn.Module
    which: list[Group]
    nets: list[nn.Module]
    members: int | None = None
    rule: str = "unanimous"
    selection: str = "runner-up"
    protect: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choose("rule", self.rule, RULES)
        choose("selection", self.selection, SELECTIONS)
        if self.members is not None and self.members < 1:
            raise KdsecError(f"members={self.members}: ask at least 1 differentiator, or None for all")
        if not self.which or len(self.which) != len(self.nets):
            raise KdsecError(f"{len(self.which)} groups for {len(self.nets)} differentiators; give one each")

    def covered(self) -> Tensor:
        """``(K, K)``: [c, y] is True where some differentiator that may be asked about c also knows y."""
        count = max(map(max, self.which)) + 1
        table = torch.zeros(count, count, dtype=torch.bool)
        for group in self.which:
            for first, second in itertools.permutations(group, 2):
                table[first, second] = self._checks(first)
        return table

    def verifiers(self) -> dict[int, list[tuple[nn.Module, int]]]:
        """For each class that is checked, who may be asked and at which of their outputs the class stands."""
        table: dict[int, list[tuple[nn.Module, int]]] = {}
        for group, net in zip(self.which, self.nets, strict=True):
            for place, label in enumerate(group):
                if self._checks(label):
                    table.setdefault(label, []).append((net, place))
        return table

    def judge(self, images: Tensor) -> Judged:
        """Decisions of the student and scores in [0, 1].

        Raises:
            KdsecError: a decision that should be checked and that no differentiator knows.
        """
        logits = predict(self.student, images)
        decision = logits.argmax(1)
        chance, vote = self._beliefs(images, decision)
        knows = ~chance.isnan()
        asked = self._asked(logits, decision, knows)
        count = asked.sum(1)
        unknown = [each for each in decision[count == 0].unique().tolist() if self._checks(each)]
        if unknown:
            raise KdsecError(
                f"no differentiator knows class {unknown[0]}; build one with a group that holds it, or name "
                "the classes to protect"
            )
        if self.rule == "unanimous":
            score = chance.masked_fill(~asked, 1.0).amin(1)
        else:
            given = chance if self.rule == "mean" else vote
            score = given.masked_fill(~asked, 0.0).sum(1) / count.clamp(min=1)
        return Judged(decision, score.masked_fill(count == 0, 1.0))

    def _checks(self, decision: int) -> bool:
        return self.protect is None or decision in self.protect

    def _beliefs(self, images: Tensor, decision: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, differentiators)`` twice: the probability of the decision, and whether it is the largest.

        Not a number where the differentiator does not know the decision.
        """
        chance = torch.full((len(images), len(self.nets)), torch.nan, device=decision.device)
        vote = chance.clone()
        for place, (group, net) in enumerate(zip(self.which, self.nets, strict=True)):
            for known, label in enumerate(group):
                rows = (decision == label).nonzero().squeeze(1)
                if len(rows) and self._checks(label):
                    p = predict(net, images[rows]).softmax(1)
                    chance[rows, place] = p[:, known]
                    vote[rows, place] = (p.argmax(1) == known).float()
        return chance, vote

    def _asked(self, logits: Tensor, decision: Tensor, knows: Tensor) -> Tensor:
        """``(N, differentiators)``: who is asked about each input."""
        if self.members is None:
            return knows
        if self.selection == "runner-up":
            rivals = logits.softmax(1).scatter(1, decision[:, None], 0.0)
            rank = torch.stack([rivals[:, list(group)].sum(1) for group in self.which], 1)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            rows = logits.shape[1] if self.selection == "fixed" else len(logits)
            drawn = torch.rand(rows, len(self.nets), generator=generator).to(logits.device)
            rank = drawn[decision] if self.selection == "fixed" else drawn
        best = rank.masked_fill(~knows, -1.0).topk(min(self.members, len(self.nets)), dim=1).indices
        return knows & torch.zeros_like(knows).scatter(1, best, True)
