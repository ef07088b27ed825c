"""Baselines for distilled differentiators.

``Confidence``, ``Agreement``, ``InputDropout`` and ``Squeezing`` are rejectors like the differentiators;
``push_away`` changes the student's features. ``verifiers`` of a rejector names the networks that have to take
an image for a class before it is accepted as one: what an adaptive attacker must fool.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec import train
from kdsec.data import Batch, ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.differentiators import Fit
from kdsec.defenses.rejection import RejectorOutput
from kdsec.defenses.transformations import BitDepth, Median
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.layered import LayeredClassifier, check_cut, flatten_layers
from kdsec.models import Classifier
from kdsec.train import Recipe, cross_entropy, predict

PART = 1000  # images that are held as floats at a time
Verifiers = dict[int, list[tuple[nn.Module, int]]]  # by class: networks, and its place among their outputs


@checked
@dataclass(frozen=True, eq=False)
class Confidence:
    """The student's largest probability as score: the baseline of every rejector."""

    student: nn.Module

    @checked
    def predict_with_score(self, images: Tensor) -> RejectorOutput:
        score, decision = predict(self.student, images).softmax(1).max(1)
        return RejectorOutput(decision, score)


@checked
@dataclass(frozen=True, eq=False)
class Agreement:
    """Whole students that must agree; the score is the least probability that one of them gives the decision.

    Attributes:
        student: decides.
        others: logits over the same classes.
    """

    student: nn.Module
    others: tuple[nn.Module, ...]

    def __post_init__(self) -> None:
        if not self.others:
            raise KdsecError("agreement needs at least one other student")

    def verifiers(self, num_classes: int) -> Verifiers:
        """Every other student, for each class."""
        return {label: [(net, label) for net in self.others] for label in range(num_classes)}

    @checked
    def predict_with_score(self, images: Tensor) -> RejectorOutput:
        decision = predict(self.student, images).argmax(1)
        beliefs = torch.stack([predict(net, images).softmax(1) for net in self.others])
        chance = beliefs.gather(2, decision.expand(len(beliefs), -1)[..., None]).squeeze(2)
        return RejectorOutput(decision, chance.amin(0))


class Blank(nn.Module):
    """Sets random pixels to 0, all channels at once; other ones in every pass, in eval mode too.

    Args:
        rate: share of the pixels, in (0, 1).
        seed: of the pixels, which are drawn on the CPU.
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__()
        self.rate = rate
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, seed={self.seed}"

    def forward(self, images: Tensor) -> Tensor:
        kept = torch.rand(len(images), 1, *images.shape[2:], generator=self.generator) >= self.rate
        return images * kept.to(images.device)


@checked
@dataclass(frozen=True)
class InputDropout:
    """Majority vote over copies of an input with random pixels blanked; the score is the majority's share.

    Attributes:
        student: decides, by majority.
        rate: share of the pixels (all channels at once) that is blanked.
        passes: number of copies.
        seed: of the blanked pixels; the same in every call.
    """

    student: nn.Module
    rate: float = 0.1
    passes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or self.passes < 1:
            raise KdsecError(f"rate={self.rate}, passes={self.passes}: a share in (0, 1), and 1 or more")

    @checked
    def predict_with_score(self, images: Tensor) -> RejectorOutput:
        blank = Blank(self.rate, self.seed)
        parts = [to_float(part).float() for part in images.split(PART)]
        passes = [
            torch.cat([predict(self.student, blank(part)).argmax(1) for part in parts])
            for _ in range(self.passes)
        ]
        votes = torch.stack(passes)
        decision = votes.mode(0).values
        return RejectorOutput(decision, (votes == decision).float().mean(0))


@checked(labelled=["validation"])
def choose_dropout(
    student: nn.Module, validation: ImageSet, rates: Sequence[float], loss: float = 0.02, seed: int = 0
) -> InputDropout:
    """Input dropout at the largest of ``rates`` that costs at most ``loss`` of the validation accuracy.

    Args:
        student: classifies.
        validation: clean, labelled images.
        rates: to choose from; where all cost more, the smallest is taken.
        loss: allowed loss of accuracy, a share.
        seed: of the blanked pixels.
    """
    if not isinstance(rates, Sequence):
        raise KdsecError(f"rates={rates!r} must be a list of shares")
    alone = (predict(student, validation).argmax(1) == validation.labels).float().mean().item()
    tried = [InputDropout(student, rate, seed=seed) for rate in sorted(rates)]
    if not tried:
        raise KdsecError("there are no dropout rates to choose from; give at least one")
    chosen = tried[0]
    for rejector in tried:
        decision = rejector.predict_with_score(validation.images).decision
        if (decision == validation.labels).float().mean().item() >= alone - loss:
            chosen = rejector
    return chosen


@checked
@dataclass(frozen=True)
class Squeezing:
    """Feature squeezing (Xu, Evans & Qi 2018, arXiv 1704.01155): does the prediction survive a coarser image?

    The score is 1 minus half the largest L1 distance between the student's probabilities for the image and
    for its squeezed versions: fewer grey levels, and the median of each small square. If the student gives a
    class at least the probability p for the image and for both versions, the score is at least p.

    Attributes:
        student: decides.
        bits: of a pixel.
        window: side of the square in pixels.
    """

    student: nn.Module
    bits: int = 4
    window: int = 2

    def squeezers(self) -> tuple[nn.Module, nn.Module]:
        """What squeezes: the rounding, whose gradient is zero, and the median, which has one."""
        return BitDepth(self.bits), Median(self.window)

    @checked
    def predict_with_score(self, images: Tensor) -> RejectorOutput:
        outputs = [self._part(to_float(part).float()) for part in images.split(PART)]
        return RejectorOutput(*map(torch.cat, zip(*outputs, strict=True)))

    def _part(self, pixels: Tensor) -> RejectorOutput:
        p = predict(self.student, pixels).softmax(1)
        others = [predict(self.student, squeeze(pixels)).softmax(1) for squeeze in self.squeezers()]
        gaps = [(p - other).abs().sum(1) for other in others]
        return RejectorOutput(p.argmax(1), 1 - torch.stack(gaps).amax(0) / 2)


@checked
@dataclass(frozen=True)
class NeuronDistance:
    r"""Keep the student's features away from the teacher's (Wang et al. 2018; the patch in their code).

    .. math:: \mathrm{CE} + w\,[\max(D - \delta(x), 0)]^2,\qquad
       \delta(x) = \sqrt{\textstyle\sum_i v_i (f_T^{\,\ell}(x)_i - f_S^{\,\ell}(x)_i)^2}

    :math:`v` is n times the unit vector of :math:`\sum_j |W_{ij}|`, W the weights of the student's head and n
    the number of its inputs: a neuron counts by its weights in the head. :math:`v` has a gradient too. In a
    layer that the head does not read, all neurons count equally.

    Attributes:
        teacher: in layers, see ``flatten_layers``; not trained.
        layer: the one of the formula.
        distance: D, in the units of the features.
        weight: w.
    """

    teacher: LayeredClassifier
    layer: int
    distance: float
    weight: float = 1e-6

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        student = cast(LayeredClassifier, model)
        stages = student.features(batch.images)
        with torch.no_grad():
            theirs = self.teacher.output(batch.images, self.layer).float()
        gap = (stages[self.layer - 1].flatten(1).float() - theirs).square()
        if self.layer == student.depth:
            heard = student.head.weight.abs().sum(0)
            gap = gap * (len(heard) * F.normalize(heard, dim=0))
        # 1e-12: the square root has no finite slope at 0, where a student that equals its teacher starts.
        away = (gap.sum(1) + 1e-12).sqrt()
        short = (self.distance - away).clamp(min=0).square().mean()
        return cross_entropy(student.head(stages[-1]), batch.labels) + self.weight * short


@checked
def push_away(
    student: LayeredClassifier,
    teacher: Classifier,
    data: ImageSet,
    recipe: Recipe,
    *,
    layer: int,
    distance: float,
    stages: int = 25,
    weight: float = 1e-6,
    fit: Fit | None = None,
    seed: int = 0,
) -> LayeredClassifier:
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
    check_number("weight", weight, least=0)
    net = copy.deepcopy(student).requires_grad_(True)
    net.frozen = 0
    away = flatten_layers(teacher).eval().requires_grad_(False)
    for stage in range(1, stages + 1):
        loss = NeuronDistance(away, layer, distance * stage / stages, weight)
        if stage == stages:
            steps = recipe.steps and recipe.steps * (stages + 1)
            recipe = dataclasses.replace(recipe, epochs=recipe.epochs * (stages + 1), steps=steps)
        if fit is None:
            train.fit(net, data, recipe, loss, seed=seed + stage)
        else:
            fit("neuron distance", net, data, recipe, loss)
    return net.eval()
