r"""The attacker who knows the defence: through the student and everyone who checks it, at once.

A mimicry attack was made before the differentiators existed. One who expects them minimises

.. math:: w\,\frac{\lVert f_T^{\,\ell}(x') - f_T^{\,\ell}(x_t) \rVert_2}
   {\lVert f_T^{\,\ell}(x_s) - f_T^{\,\ell}(x_t) \rVert_2}
   + \beta \Big( [\kappa - \gamma_t(f_S, x')]_+ + \sum_j [\kappa - \gamma_t(f_j, x')]_+ \Big)

with :math:`\gamma_t` a network's logit of the target minus its largest other one, and j over all that may be
asked about t. w = 0 forgets the teacher. The networks are the real ones (white box), or copies that the
attacker has built (grey box); the sum is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from kdsec.attacks.constrained_search import Budget, constrained_search
from kdsec.attacks.mimicry import Mimic, outputs
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.layered import check_cut, flatten_layers
from kdsec.logits import margin
from kdsec.models import Classifier
from kdsec.pgd import answer, check_gradient
from kdsec.train import evaluating

Verifiers = Sequence[tuple[nn.Module, int]]  # networks, and which output of each is the target


class _Opinion(Protocol):
    decision: Tensor
    score: Tensor


@dataclass(frozen=True, eq=False)
class Joint:
    """The sum above, negated: an objective is maximised.

    Attributes:
        mimic: features wanted of the teacher.
        scale: distance of the features before the attack, ``(N,)``.
        judges: the student and the verifiers, each with the target's place among its outputs ``(N,)``, or -1
            for images that it is not asked about.
        weight: w.
        beta: weight of the judges.
        kappa: margin in logits at which a judge is content.
    """

    mimic: Mimic
    scale: Tensor
    judges: tuple[tuple[nn.Module, Tensor], ...]
    weight: float
    beta: float
    kappa: float
    followed: set[int] = field(default_factory=set)  # judges that are known to have a gradient

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        cost = torch.zeros(len(images), device=images.device)
        for net, places in self.judges:
            place = places[index]
            rows = (place >= 0).nonzero().squeeze(1)
            if len(rows):
                asked = images if len(rows) == len(images) else images[rows]
                logits = answer(net, asked)
                if asked.requires_grad and id(net) not in self.followed:
                    check_gradient(logits, asked)  # else the attack would pass this judge over in silence
                    self.followed.add(id(net))
                short = (self.kappa + margin(logits, place[rows])).clamp(min=0)  # margin is -m
                cost = cost.index_add(0, rows, self.beta * short)
        if self.weight:
            cost = cost - self.weight * self.mimic(images, index) / self.scale[index]
        return -cost


@checked
def adaptive_mimicry(
    student: nn.Module,
    teacher: Classifier,
    layer: int,
    verifiers: Mapping[int, Verifiers],
    sources: Tensor,
    targets: Tensor,
    target_labels: Tensor,
    budget: Budget,
    *,
    weight: float = 1.0,
    beta: float = 1.0,
    kappa: float = 6.0,
    batch_size: int = 250,
) -> Tensor:
    """Targeted images ``(N, C, H, W)`` that teacher, student and verifiers all take for the target.

    Args:
        student: the real one, or the attacker's.
        teacher, layer, sources, targets, budget, batch_size: as in ``mimicry.mimic``.
        verifiers: for each class, the networks that may be asked about it and its place among their outputs;
            a class that is not in it has none.
        target_labels: ``(N,)``.
        weight, beta, kappa: see above; the first two 0 or more and not both 0. A defence that accepts from a
            probability p upwards is passed only with kappa above
            ``enough_margin``.

    Raises:
        KdsecError: impossible weights, verifiers that are no pairs, a judge without gradients, or what
            ``mimic`` refuses.
    """
    for pair in (pair for table in verifiers.values() for pair in table):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], int) and pair[1] >= 0):
            raise KdsecError("verifiers are pairs (network, place of the class among its outputs, from 0 up)")
    if weight < 0 or beta < 0 or not weight + beta:
        raise KdsecError(f"weight={weight}, beta={beta} must be 0 or more, and not both 0")
    if not len(sources) == len(targets) == len(target_labels):
        raise KdsecError(
            f"{len(sources)} sources, {len(targets)} targets, {len(target_labels)} labels: give one each"
        )
    net = flatten_layers(teacher)
    check_cut(layer, net.depth, smallest=1)
    net.eval().requires_grad_(False)
    judges = [student, *(judge for table in verifiers.values() for judge, _ in table)]
    # Each network once a step, on all images that it is asked about.
    places = {id(student): (student, target_labels.clone())}
    for label in target_labels.unique().tolist():
        for judge, place in verifiers.get(label, ()):
            _, asked = places.setdefault(id(judge), (judge, torch.full_like(target_labels, -1)))
            asked[target_labels == label] = place
    wanted = outputs(net, layer, targets)
    objective = Joint(
        mimic=Mimic(net, layer, wanted),
        scale=(outputs(net, layer, sources) - wanted).norm(dim=1).clamp(min=1e-6),
        judges=tuple(places.values()),
        weight=weight,
        beta=beta,
        kappa=kappa,
    )
    with evaluating(nn.ModuleList(judges)):
        return constrained_search(objective, sources, budget, batch_size).images


@checked
def enough_margin(p: float, classes: int) -> float:
    r"""The margin in logits that gives the target at least the probability ``p`` among ``classes``.

    :math:`\log\frac{p}{1-p} + \log(K-1)`; for two classes no smaller one is enough. At least 0, since the
    decision must be the target too, however little p asks for. p is kept within 0.001 and 1 - 1e-6.
    """
    p = min(max(p, 1e-3), 1 - 1e-6)
    return max(math.log(p / (1 - p)) + math.log(classes - 1), 0.0)


def worst_case_over_attempts(
    judge: Callable[[Tensor], _Opinion], attempts: Sequence[Tensor], target_labels: Tensor
) -> Tensor:
    """Of several attempts at each image, the one that the defence stands by most as the target.

    An attacker with the defence at hand tries everything and keeps what works, the unaware attack included;
    so an adaptive attack can never be weaker than the one it is compared with.

    Args:
        judge: the defence, ``rejector.predict_with_score`` for instance.
        attempts: each ``(N, C, H, W)``.
        target_labels: ``(N,)``.
    """
    if not attempts:
        raise KdsecError("there are no attempts to choose from; give at least one")
    opinions = [judge(images) for images in attempts]
    standing = torch.stack(
        [torch.where(each.decision == target_labels, each.score.double(), -1.0) for each in opinions]
    )
    return torch.stack(list(attempts))[standing.argmax(0), torch.arange(len(target_labels))]
