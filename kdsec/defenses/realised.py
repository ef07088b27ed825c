r"""Manipulation checks: did a defence's objective do to held-out answers what it says?

A defence that was not realised gets no verdict. Every check compares the protected logits ``(N, K)`` with
those of the honest network on the same held-out images, at the temperature the defence was made for:

===================  =======================================================================  =============
objective            measured                                                                 required
===================  =======================================================================  =============
``reversed``         rank correlation of the negatives with the honest network's, -1 to 1     at most -0.5
``evened``           unevenness of the negatives, ln n minus their entropy, as a share of     at most 0.5
                     the honest network's
``moved``            mean total variation distance from the honest answers, 0 to 1            at least 0.1
``sparse``           share of images with more than ``keep`` probabilities above 1e-6         at most 0.01
===================  =======================================================================  =============

The first two ask for answers that are nearer to the objective than to an unchanged (or unrelated) order. With
``control``, logits of a second *unprotected* network, ``moved`` asks for twice its distance instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.logits import check_same_shape, check_temperature, negatives, rank_agreement

OBJECTIVES = ("reversed", "evened", "moved", "sparse")
# What each protected teacher is for; teachers without an entry protect nothing, or something else.
OBJECTIVE_OF = {
    "negate": "reversed",
    "rank": "reversed",
    "linear rank": "reversed",
    "complement": "evened",
    "uniform": "evened",
    "smoothed": "evened",
    "away": "moved",
    "nasty": "moved",
    "AST": "moved",
    "stingy": "sparse",
}
SEEN = 1e-6  # a smaller probability is none


@dataclass(frozen=True)
class ManipulationCheck:
    """What was measured of a defence's objective, and what was required.

    Attributes:
        measure: what ``value`` is, in words.
        value: measured on held-out images.
        required: the bound.
        at_most: whether ``required`` is an upper bound.
    """

    measure: str
    value: float
    required: float
    at_most: bool

    @property
    def realised(self) -> bool:
        return self.value <= self.required if self.at_most else self.value >= self.required

    @property
    def metrics(self) -> dict[str, float]:
        """For ``run.record``: the value by its name, the bound, and 1 or 0."""
        return {self.measure: self.value, "required": self.required, "realised": float(self.realised)}

    def __str__(self) -> str:
        bound = f"at {'most' if self.at_most else 'least'} {self.required:.2f}"
        return f"{self.measure} {self.value:.2f}, required {bound}: {'' if self.realised else 'not '}realised"


def objective_of(defense: str) -> str | None:
    """The objective of a defence by its name in the tables (``RML, negate`` or ``negate``); None without."""
    return OBJECTIVE_OF.get(defense.removeprefix("RML, "))


@checked
def check_realised(
    objective: str,
    logits: Tensor,
    honest: Tensor,
    positive: Tensor,
    temperature: float = 4.0,
    *,
    control: Tensor | None = None,
    keep: int = 2,
) -> ManipulationCheck:
    """Measure one objective; see the module's table.

    Args:
        objective: one of ``OBJECTIVES``.
        logits, honest: of the protected and of the honest network on held-out images, ``(N, K)``.
        positive: the class ``(N,)`` that is not a negative: the label.
        temperature: of the softmaxes compared, above 0.
        control: logits of another unprotected network, for ``moved``.
        keep: probabilities that the sparse teacher answers with.

    Raises:
        KdsecError: an unknown objective, other shapes, or no images.
    """
    check_choice("objective", objective, OBJECTIVES)
    check_temperature(temperature)
    check_number("keep", keep, least=1, whole=True)
    check_same_shape(logits, honest)
    if not len(logits):
        raise KdsecError("there are no held-out answers to check a defence on; give at least one image")
    match objective:
        case "reversed":
            value = rank_agreement(logits, honest, positive)
            return ManipulationCheck("agreement with honest", value, -0.5, True)
        case "evened":
            was, now = (unevenness(each, positive, temperature) for each in (honest, logits))
            share = now / was if was > 0 else math.inf  # even negatives cannot be made more even
            return ManipulationCheck("unevenness kept", share, 0.5, True)
        case "moved":
            required = 2 * variation(control, honest, temperature) if control is not None else 0.1
            return ManipulationCheck("moved", variation(logits, honest, temperature), required, False)
        case _:
            more = ((logits.float().softmax(1) > SEEN).sum(1) > keep).float().mean().item()
            return ManipulationCheck("answers not sparse", more, 0.01, True)


def unevenness(logits: Tensor, positive: Tensor, temperature: float) -> float:
    """ln n minus the entropy of the negatives in nats, mean over the images: 0 where they are even."""
    p = negatives(logits, positive, temperature).exp()
    return math.log(p.shape[1]) - torch.special.entr(p).sum(1).mean().item()


def variation(first: Tensor, second: Tensor, temperature: float) -> float:
    """Total variation distance of the softened answers, mean over the images: 0 equal, 1 disjoint."""
    p, q = ((each.float() / temperature).softmax(1) for each in (first, second))
    return ((p - q).abs().sum(1) / 2).mean().item()
