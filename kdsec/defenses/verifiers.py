"""What distilled differentiators must be compared with: cheaper ways to check, or to move, a student.

The first four are rejectors like the differentiators (``kdsec.defenses.rejection``). The last two change the
network that is attacked: the student's features, or the teacher's.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec import train
from kdsec.attacks.ascent import Ball
from kdsec.attacks.evasion import ascend
from kdsec.data import Batch, ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.differentiators import Fit
from kdsec.defenses.rejection import Judged
from kdsec.errors import KdsecError, choose
from kdsec.train import Recipe, cross_entropy, predict
from kdsec.transfer import Student, check_cut, unfold


@dataclass(frozen=True, eq=False)
class Confidence:
    """The student alone: its largest probability. What any second opinion must beat."""

    student: nn.Module

    def judge(self, images: Tensor) -> Judged:
        score, decision = predict(self.student, images).softmax(1).max(1)
        return Judged(decision, score)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Other whole students give their opinion, trained with other seeds or from other teachers.

    Five of them cost as much per input as five unpruned differentiators, and are five networks to build
    instead of one for each pair of classes.

    Attributes:
        student: decides.
        others: logits over the same classes.
        rule: ``unanimous`` (the least probability of the decision), ``mean``, or ``vote``.
    """

    student: nn.Module
    others: tuple[nn.Module, ...]
    rule: str = "unanimous"

    def __post_init__(self) -> None:
        choose("rule", self.rule, ("unanimous", "mean", "vote"))
        if not self.others:
            raise KdsecError("agreement needs at least one other student")

    def verifiers(self, num_classes: int) -> dict[int, list[tuple[nn.Module, int]]]:
        """As ``Committee.verifiers``, for the attacker who knows."""
        return {label: [(net, label) for net in self.others] for label in range(num_classes)}

    def judge(self, images: Tensor) -> Judged:
        decision = predict(self.student, images).argmax(1)
        beliefs = torch.stack([predict(net, images).softmax(1) for net in self.others])
        chance = beliefs.gather(2, decision.expand(len(beliefs), -1)[..., None]).squeeze(2)
        if self.rule == "vote":
            chance = (beliefs.argmax(2) == decision).float()
        return Judged(decision, chance.amin(0) if self.rule == "unanimous" else chance.mean(0))


@dataclass(frozen=True)
class InputDropout:
    """Answer for copies of an input with pixels blanked at random; the share that agrees is the score.

    Attributes:
        student: decides, by majority.
        rate: share of the pixels (all channels at once) that is blanked.
        passes: how many copies.
        seed: of the blanks; the same for every call.
    """

    student: nn.Module
    rate: float = 0.1
    passes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or self.passes < 1:
            raise KdsecError(f"rate={self.rate}, passes={self.passes}: a share in (0, 1), and 1 or more")

    def judge(self, images: Tensor) -> Judged:
        pixels = to_float(images).float()
        generator = torch.Generator().manual_seed(self.seed)
        answers = []
        for _ in range(self.passes):
            kept = torch.rand(len(pixels), 1, *pixels.shape[2:], generator=generator) >= self.rate
            answers.append(predict(self.student, pixels * kept.to(pixels)))
        votes = F.one_hot(torch.stack(answers).argmax(2), answers[0].shape[1]).float().mean(0)
        share, decision = votes.max(1)
        return Judged(decision, share)


@dataclass(frozen=True)
class Squeezing:
    """Feature squeezing (Xu, Evans & Qi 2018, arXiv 1704.01155): does the answer survive a coarser image?

    The score is 1 minus half the largest L1 distance between the student's probabilities for the image and
    for its squeezed versions: fewer grey levels, and the median of each small square.

    Attributes:
        student: decides.
        bits: of a pixel.
        window: side of the square in pixels.
    """

    student: nn.Module
    bits: int = 4
    window: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.window < 1:
            raise KdsecError(f"bits={self.bits}, window={self.window}: 1 to 8 bits, a window of 1 or more")

    def judge(self, images: Tensor) -> Judged:
        pixels = to_float(images).float()
        levels = 2**self.bits - 1
        p = predict(self.student, pixels).softmax(1)
        squeezed = [(pixels * levels).round() / levels, _median(pixels, self.window)]
        gaps = [(p - predict(self.student, each).softmax(1)).abs().sum(1) for each in squeezed]
        return Judged(p.argmax(1), 1 - torch.stack(gaps).amax(0) / 2)


def _median(images: Tensor, window: int) -> Tensor:
    """The lower median of each ``window`` x ``window`` square, edges repeated."""
    before, after = (window - 1) // 2, window // 2
    padded = F.pad(images, (before, after, before, after), mode="replicate")
    squares = padded.unfold(2, window, 1).unfold(3, window, 1)
    return squares.flatten(4).median(4).values


@dataclass(frozen=True)
class NeuronDistance:
    r"""Keep the student's features away from the teacher's (Wang et al. 2018; the patch in their code).

    .. math:: \mathrm{CE} + w\,[\max(D - \delta(x), 0)]^2,\qquad
       \delta(x) = \sqrt{\textstyle\sum_i v_i (f_T^{\,\ell}(x)_i - f_S^{\,\ell}(x)_i)^2}

    :math:`v` is n times the unit vector of :math:`\sum_j |W_{ij}|`, W the weights of the student's head
    and n the number of its inputs: a neuron counts by how much the head listens to it. It has a gradient too.
    For a layer that the head does not read, all neurons count alike.

    Attributes:
        teacher: in layers, see ``unfold``; not trained.
        layer: the one of the formula.
        distance: D, in the units of the features.
        weight: w.
    """

    teacher: Student
    layer: int
    distance: float
    weight: float = 1e-6

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        student = cast(Student, model)
        stages = student.features(batch.images)
        with torch.no_grad():
            theirs = self.teacher.output(batch.images, self.layer).float()
        gap = (stages[self.layer - 1].flatten(1).float() - theirs).square()
        if self.layer == student.depth:
            heard = student.head.weight.abs().sum(0)
            gap = gap * (len(heard) * F.normalize(heard, dim=0))
        # The square root has no finite slope at 0, where a student begins that still is its teacher.
        away = (gap.sum(1) + 1e-12).sqrt()
        short = (self.distance - away).clamp(min=0).square().mean()
        return cross_entropy(student.head(stages[-1]), batch.labels) + self.weight * short


def push_away(
    student: Student,
    teacher: Student,
    data: ImageSet,
    recipe: Recipe,
    *,
    layer: int,
    distance: float,
    stages: int = 25,
    weight: float = 1e-6,
    fit: Fit | None = None,
    seed: int = 0,
) -> Student:
    """A copy of the student, all layers free, retrained with ``NeuronDistance``.

    D rises to ``distance`` in equal steps. Their code: 25 epochs with D = 200, 400, ... 5,000, then 25 more;
    plain SGD at a rate of 0.001, batches of 32.

    Args:
        student, teacher: of the same architecture; not changed.
        data: the student's training images.
        recipe: of one step; the last, at the full distance, is as long as all others together.
        layer, distance, weight: of the loss.
        stages: how many steps D takes.
        fit: as in ``differentiators.build``.
        seed: of the training without ``fit``.

    Raises:
        KdsecError: no such layer, or a distance or number of stages below what is possible.
    """
    check_cut(layer, student.depth, smallest=1)
    if not distance > 0 or stages < 1:
        raise KdsecError(f"distance={distance}, stages={stages}: a distance above 0, 1 stage or more")
    net = copy.deepcopy(student).requires_grad_(True)
    net.frozen = 0
    away = unfold(teacher).eval().requires_grad_(False)
    for stage in range(1, stages + 1):
        last = stage == stages
        loss = NeuronDistance(away, layer, distance * stage / stages, weight)
        long = dataclasses.replace(recipe, epochs=recipe.epochs * (stages + 1)) if last else recipe
        if fit is None:
            train.fit(net, data, long, loss, seed=seed + stage)
        else:
            fit("neuron distance", net, data, long, loss)
    return net.eval()


@dataclass(frozen=True)
class AdversarialTraining:
    """Cross-entropy on the worst images near the training images (Madry et al. 2018, eq. 2.1).

    For the teacher whose features shall be harder to move.

    Attributes:
        eps: largest change of a pixel in [0, 1].
        steps: of projected gradient descent from a random start.
    """

    eps: float = 8 / 255
    steps: int = 7

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1 or self.steps < 1:
            raise KdsecError(f"eps={self.eps}, steps={self.steps}: a change in (0, 1], 1 step or more")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        ball = Ball(batch.images, self.eps)
        start = ball.project(batch.images + self.eps * (2 * torch.rand_like(batch.images) - 1))
        model.eval()  # the images of every step must not enter the statistics of batch normalisation
        worst = ascend(model, start, batch.labels, ball, 2.5 * self.eps / self.steps, self.steps)
        model.train()
        return cross_entropy(model(worst.detach()), batch.labels)
