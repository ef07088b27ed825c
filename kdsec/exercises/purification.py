"""Checks for the exercises of the chapter on purification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdsec.defenses.purification import READINGS
from kdsec.defenses.transformations import BitDepth
from kdsec.exercises import ask, choice, compare, exercise, off, tensor


@exercise
def early(answer: Any) -> str:
    """What stopping at the first success does to the purifier's grey-box accuracy; the solution measures."""
    said = choice(answer, ("higher", "the same", "lower"))
    if said == "lower":
        off("both attacks fool f; which of the two leaves its images nearer to where they began?")
    if said == "the same":
        off("the images are others: these have crossed the boundary of f, and gone no further")
    return "what lies just beyond the boundary is easily taken back, and that is no merit of the purifier"


@exercise
def average(answer: Any) -> str:
    """The readings in which both lessons are about the same output of the student."""
    if not isinstance(answer, set | frozenset | list | tuple):
        off("give a set of names, such as {'averaged'}")
    said = {choice(each, READINGS) for each in answer}
    if "each its own" in said:
        off("in 'each its own' the student sees the clean image in the second lesson: that is another S")
    if missing := {"averaged", "both attacked"} - said:
        off(f"what does the student see in the second lesson of {' and '.join(map(repr, sorted(missing)))}?")
    return "two teachers of one output are one teacher, who says their mean"


@exercise
def straight(answer: Any) -> str:
    """``answer(purifier, x)``: the purifier's output, with the gradient of the identity."""
    purifier, weights = BitDepth(2), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    x = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    made = ask(answer, purifier, x)
    values, rounded = tensor(made, x.shape), purifier(x).detach()
    slips = [
        (x.detach(), "that is the image as it was; forwards, go through the real purifier"),
        (rounded - x.detach(), "that is only what the purifier changes; where is the image?"),
    ]
    compare(values, rounded, slips, "forwards it must be the purifier's own output", 1e-5)
    gradient = None
    if isinstance(made, Tensor) and made.requires_grad:
        (gradient,) = torch.autograd.grad((weights * made).sum(), x, allow_unused=True)
    if gradient is None:
        off("no gradient gets back to x: something is detached that should not be")
    if not gradient.any():
        off("the output is right and its gradient is zero everywhere: this attacker stands still")
    compare(gradient, weights, [], "backwards it must be the identity, whatever the purifier does", 1e-5)
    return "what looked like robustness to an attacker with the true gradient was only its absence"
