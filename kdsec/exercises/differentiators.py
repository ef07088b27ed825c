"""Checks for the exercises of the chapter on distilled differentiators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdsec.exercises import ask, compare, exercise, number, off

ASKED, LOSS, REJECTED = 5, 0.1, 0.9


@exercise
def coins(answer: Any) -> str:
    """Per differentiator: least a on clean images, largest q on attacked ones; and what coins let pass."""
    if not isinstance(answer, Mapping) or set(answer) != {"a", "q", "coins"}:
        off("keep the dictionary with the keys 'a', 'q' and 'coins'")
    kept, passed = 1 - LOSS, 1 - REJECTED
    parts = {
        "a": (kept ** (1 / ASKED), [(kept, "all five together must reach that; each alone must be better")]),
        "q": (
            passed ** (1 / ASKED),
            [(passed, "all five together may let that pass; each alone may let more")],
        ),
        "coins": (
            0.5**ASKED,
            [(0.5, "that is one coin; all must accept"), (1 - 0.5**ASKED, "that is what they reject")],
        ),
    }
    parts["a"][1].append((kept**ASKED, "that is what five of 0.9 each come to; go the other way"))
    parts["q"][1].append((REJECTED ** (1 / ASKED), "a tenth may be accepted, nine tenths are rejected"))
    for name, (right, slips) in parts.items():
        if answer[name] is None or answer[name] is ...:
            off(f"{name} is still empty")
        named = [(wrong, f"{name}: {hint}") for wrong, hint in slips]
        hint = f"{name}: they are independent and all must accept, so multiply; give three digits"
        compare(number(answer[name]), right, named, hint, 6e-4)
    return "attacked images are turned away even by coins; to be nearly always right on clean ones is hard"


@exercise
def kappa(answer: Any) -> str:
    """``answer(kappa, classes)``: the probability of the target that a margin of kappa makes sure of."""
    for classes, margin in ((2, 0.5), (5, 0.5), (10, 2.0)):
        others = math.exp(-margin)
        needed = math.log(0.5 / (1 - 0.5)) + math.log(classes - 1)
        slips = [
            (1 / (1 + others), "with more than two classes each of the others may be only kappa below"),
            (1 / (1 + classes * others), "it is the *other* classes that may be kappa below: one fewer"),
            (1 / (1 + (classes - 1) / others), "the sign: a larger margin makes surer"),
            (needed, "the other way around: that is a margin for a probability"),
            (margin, "a margin is a difference of logits, no probability"),
        ]
        hint = "the softmax of the target's logit when all other logits lie exactly kappa below it"
        compare(number(ask(answer, margin, classes)), 1 / (1 + (classes - 1) * others), slips, hint)
    return "a margin that promises less than the threshold makes images that fool everyone and are rejected"


@exercise
def ignorant(answer: Any) -> str:
    """``answer(classes, n)``: chance that, of those who know the target, n drawn ones know the true class."""
    for classes, n in ((8, 3), (10, 3), (100, 5)):
        one = 1 / (classes - 1)
        slips = [
            (n / (classes * (classes - 1) / 2), "only pairs that know the target are asked"),
            (n / classes, "the target is in a pair with every *other* class: one fewer"),
            (1 - n * one, "that is the chance that it is missing"),
            (one, "that is one draw; n are asked"),
            (1 - (1 - one) ** n, "nobody is asked twice: draw without putting back"),
        ]
        hint = "how many pairs know the target, how many of these the true class, and how many are asked?"
        compare(number(ask(answer, classes, n)), n * one, slips, hint, 1e-5)
    return "with many classes nearly all who are asked have never seen the true one"
