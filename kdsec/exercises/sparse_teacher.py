"""Checks for the exercises of the chapter on the adversarial sparse teacher."""

from __future__ import annotations

from typing import Any

import torch

from kdsec.defenses.sparse_teacher import exponential_predictive_divergence as epd
from kdsec.exercises import ask, choice, compare, exercise, number, off, tensor
from kdsec.logits import keep_largest
from kdsec.report import summary
from kdsec.report.records import recorded

ROBUST = {
    "supported": "easier to fool",
    "contradicted": "harder to fool",
    "undecided": "neither, beyond doubt",
}


@exercise
def lowest(answer: Any) -> str:
    """The smallest value of EPD over p, for q = (0.6, 0.4, 0, ...)."""
    q = torch.zeros(1, 10)
    q[0, :2] = torch.tensor([0.6, 0.4])
    first, second, third = (epd(q, corner[None]).item() for corner in torch.eye(10)[:3])
    slips = [
        (0.0, "that is its value at p = q, where relative entropy is lowest; EPD goes on falling"),
        (second, "that is all weight on the second class; the first has the larger exp(q)"),
        ((q.exp() * q).sum(), "the second sum is missing: exp(q) of the class on which all of p sits"),
        (third, "that is the highest point: all weight on a class with q = 0"),
    ]
    hint = "put all of p on one class: the sum of exp(q) q over all classes, minus exp(q) of that one"
    compare(number(answer), first, slips, hint, 2e-3)
    return "the perfect AST teacher names the top class of x' alone; relative entropy would ask for both"


@exercise
def stingy(answer: Any) -> str:
    """``answer(z, keep, tau)``: the stingy teacher's probabilities (N, K) at temperature tau."""
    z = 3 * torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
    keep, tau = 3, 4.0
    kept, smallest = keep_largest(z, keep), z.masked_fill((-z).argsort(1).argsort(1) < 7, -torch.inf)
    right = (kept / tau).softmax(1)
    found = tensor(ask(answer, z, keep, tau), z.shape)
    slips = [
        ((keep_largest(z, keep, 0.0) / tau).softmax(1), "a logit of 0 is not nothing: exp(0) is 1"),
        ((z / tau).softmax(1) * (right > 0), "the probabilities that are kept must add up to one"),
        (kept.softmax(1), "the temperature is missing"),
        ((kept * tau).softmax(1), "divide by the temperature; multiplied, the answers get harder"),
        ((smallest / tau).softmax(1), "those are the smallest logits"),
        ((z / tau).softmax(1), "that is the honest teacher: nothing was removed"),
    ]
    hint = "the `keep` largest logits, minus infinity elsewhere, all divided by τ, then a softmax"
    compare(found, right, slips, hint)
    return "no training, the same decisions, and exactly zero for all other classes at every temperature"


@exercise
def robust(answer: Any) -> str:
    """Is AST's teacher harder to fool than the normal one? The closing chapter's records decide."""
    said = choice(answer, ROBUST.values())
    gap = summary.difference(recorded("crossing", "quick"), "normal", "AST", "robust accuracy", who="teacher")
    if said == ROBUST[gap.verdict()]:
        return "AST asks for an answer on x and for nothing on x', so there is no reason for robustness"
    if said == "harder to fool":
        off("AST sees adversarial images, but does any term of its loss ask for the right class on them?")
    off(f"one seed says little: over {gap.seeds} recorded seeds, is the difference larger than its interval?")
