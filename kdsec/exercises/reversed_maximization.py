"""Checks for the exercises of the chapter on reversed maximization."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import one_hot

from kdsec.exercises import ask, compare, exercise, number, off, tensor
from kdsec.logits import reverse


@exercise
def two_classes(answer: Any) -> str:
    """With two classes: the single negative's probability among the negatives, after any reversal."""
    slips = [
        (0.5, "that would be two even negatives; how many are there?"),
        (0.0, "probabilities among the negatives add up to one, however few there are"),
    ]
    hint = "the negatives' probabilities add up to one, and there is one negative"
    compare(number(answer), 1.0, slips, hint, 1e-6)
    return "one cannot be ranked: nothing is hidden, and nothing is left to hide"


@exercise
def flat(answer: Any) -> str:
    """Logits of three or more negatives that become more uneven when negated."""
    try:
        logits = torch.as_tensor(answer, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        off("give a list of numbers, the negatives' logits")
    if logits.ndim != 1 or len(logits) < 2 or not logits.isfinite().all():
        off("give a list of finite numbers, the negatives' logits")
    if len(logits) == 2:
        off("with two negatives negation exchanges them, and the unevenness stays; take more")
    before, after = (
        math.log(len(logits)) - torch.special.entr(each.softmax(0)).sum().item() for each in (logits, -logits)
    )
    if after > before + 1e-3:
        return "one class far below the rest is hardly seen by a softmax; negated, it is a peak"
    if before > after + 1e-3:
        off("these become less uneven: a class above the rest is a peak, and negated only a dip")
    off("these are as uneven as before: break the symmetry between high and low")


@exercise
def undo(answer: Any) -> str:
    """``answer(z, tau)``: logits (N, K) with the negatives negated, the decision's probability kept."""
    generator = torch.Generator().manual_seed(1)
    honest, tau = 4 * torch.randn(16, 10, generator=generator), 4.0
    decided = one_hot(honest.argmax(1), 10).bool()
    honest = honest + 16 * decided  # sure enough that no reversed negative overtakes the decision
    z = reverse(honest, honest.argmax(1), "negate", tau)
    z = z - z.mean(1, keepdim=True)
    found = tensor(ask(answer, z.clone(), tau), z.shape)
    swapped = torch.where(decided, z, -z)
    slips = [
        (-z, "the decision is turned around as well; RML left it alone, so leave it alone"),
        (z, "that is what the teacher said; nothing is undone"),
        (swapped, "right among themselves, but the negatives together weigh something else than before"),
        (reverse(z, z.argmax(1), "uniform", tau), "the negatives are even now: dropped, not undone"),
        (reverse(z, z.argmax(1), "rank", tau), "that reverses the ranks; `negate` changed the signs"),
    ]
    hint = "change the negatives' signs, then add one number to all of them: their sum of exp(z/τ) must stay"
    wrong = [((each / tau).softmax(1), text) for each, text in slips]
    compare((found / tau).softmax(1), (honest / tau).softmax(1), wrong, hint, 1e-3)
    return "an exact reversal gives everything back to an attacker who knows it: hidden, not gone"
