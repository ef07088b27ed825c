"""Choosing an attack's temperature and learning rate by successive halving on the attacker's own images.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
arXiv 1502.07943. All candidates get a short training, the better half a longer one, and so on; what wins is
trained from scratch with the full number of steps.

**What a search costs.** Training steps: ``share`` of a full training, the same for every teacher and every
attack, whatever its number of candidates. Queries: none. All candidates see the same images in the same
order, and a short training sees the first batches of the full one, so every view, augmented or not, is one
that the full training asks about too. (That holds for equal seeds, batch sizes and augmentations.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from kdsec.errors import KdsecError, check_number
from kdsec.train import Diverged

Model = TypeVar("Model")


class Candidate(NamedTuple):
    """A temperature (None where an attack has none) and a factor on the recipe's learning rate."""

    temperature: float | None
    rate: float


@dataclass(frozen=True)
class Search:
    """What an attacker chooses among, the same for every teacher.

    Attributes:
        temperatures: of distillation, above 0.
        rates: factors on the recipe's learning rate, above 0.
        share: steps of the search as a share of those of one full training, above 0.

    Raises:
        KdsecError: nothing to choose from, or a value that is not above 0.
    """

    temperatures: tuple[float, ...] = (4.0,)
    rates: tuple[float, ...] = (1.0,)
    share: float = 1.0

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0)
        for name, values in {"temperatures": self.temperatures, "rates": self.rates}.items():
            if not isinstance(values, Sequence) or isinstance(values, str):
                raise KdsecError(f"{name}={values!r} must be several numbers, for instance (1.0, 4.0)")
            if not values:
                raise KdsecError(f"{name} of a search are empty; give at least one")
            for value in values:
                check_number(name, value, above=0)


def successive_halving(
    candidates: Sequence[Candidate],
    train: Callable[[Candidate, int], Model],
    score: Callable[[Model], float],
    steps: int,
    share: float = 1.0,
) -> tuple[Candidate, Model]:
    """The best candidate and its model, trained for ``steps``.

    Args:
        candidates: one or more; one is trained without a search.
        train: ``train(candidate, steps)``, a model trained from scratch.
        score: of a model, higher is better; of equals the first candidate wins.
        steps: of the full training.
        share: see ``Search``; each round gets an equal part, shared evenly among its candidates.

    Raises:
        Diverged: the training of every candidate explodes. One that explodes is worse than all others.
    """
    left = list(candidates)
    out: list[Candidate] = []
    rounds = math.ceil(math.log2(len(left)))
    for _ in range(rounds):
        short = max(1, round(share * steps / rounds / len(left)))
        ranked = sorted(left, key=lambda each: -_reached(train, score, each, short))
        half = math.ceil(len(left) / 2)
        left, out = ranked[:half], ranked[half:] + out
    for candidate in (*left, *out):
        try:
            return candidate, train(candidate, steps)
        except Diverged as error:
            failed = error
    raise failed


def _reached(
    train: Callable[[Candidate, int], Model],
    score: Callable[[Model], float],
    candidate: Candidate,
    steps: int,
) -> float:
    try:
        return score(train(candidate, steps))
    except Diverged:
        return -math.inf
