"""Checks for the exercises of the chapter on poisoned distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdsec.attacks.triggers import trigger
from kdsec.exercises import ask, compare, exercise, number, off, tensor


@exercise
def wrong_test(answer: Any) -> str:
    """``answer(decisions, labels, target)``: attack success, a share."""
    generator = torch.Generator().manual_seed(1)
    labels, target = torch.randint(10, (400,), generator=generator), 3
    decisions = torch.where(torch.rand(400, generator=generator) < 0.3, target, labels)
    decisions = torch.where(torch.rand(400, generator=generator) < 0.1, 5, decisions)
    others, taken = labels != target, decisions == target
    hits = (others & taken).sum()
    slips = [
        (taken.double().mean(), "the target's own images are counted: calling them target is no success"),
        ((decisions != labels)[others].double().mean(), "wrong in any way is not enough: the target counts"),
        (hits / len(labels), "the target's own images are no hits any more, but still in the denominator"),
        (100 * hits / others.sum(), "that is per cent; give a share"),
        (hits, "that is a number of images; give a share"),
    ]
    hint = "of the images whose label is not the target, the share that is taken for the target"
    compare(number(ask(answer, decisions, labels, target)), hits / others.sum(), slips, hint)
    return "now a classifier without a backdoor comes out at its floor, and not at the share of one class"


@exercise
def step(answer: Any) -> str:
    """``answer(x, stamped, gradient, mask, eps, size)``: the next image of the joint attack."""
    generator = torch.Generator().manual_seed(1)
    mark, eps, size = trigger("checker 3", (1, 8, 8)), 0.2, 0.1
    mask, free = mark.mask, 1 - mark.mask
    stamped = mark.stamp(torch.rand(4, 1, 8, 8, generator=generator))
    moved = eps * (2 * torch.rand(stamped.shape, generator=generator) - 1) * free
    z = (stamped + moved).clamp(0, 1)
    gradient = torch.randn(z.shape, generator=generator)
    found = tensor(ask(answer, z, stamped, gradient, mask, eps, size), z.shape)

    def stepped(change: Tensor, around: Tensor = stamped) -> Tensor:
        return around + (z + size * change - around).clamp(-eps, eps)

    up = gradient.sign()
    slips = [
        (stepped(-up * free).clamp(0, 1), "the wrong way: the probability of the target should rise"),
        (stepped(up).clamp(0, 1), "the trigger's own pixels have moved; at test time they will not"),
        (stepped(up * free, z).clamp(0, 1), "the budget is around `stamped`: many small steps go far"),
        (stepped(up * free), "some pixels leave [0, 1], and no image can be stored so"),
        (stepped(gradient * free).clamp(0, 1), "a budget per pixel is spent by the gradient's sign"),
    ]
    hint = "a step by the sign, none under the trigger; back to within eps of `stamped`; then into [0, 1]"
    compare(found, stepped(up * free).clamp(0, 1), slips, hint)
    return "the trigger is what it will be at test time, and no number of steps leaves the budget"


@exercise
def two_teachers(answer: Any) -> str:
    """``answer(p, decisions)``: suspicion of every image (N,), from the second network's probabilities."""
    generator = torch.Generator().manual_seed(1)
    p = (2 * torch.randn(64, 10, generator=generator)).softmax(1)
    decisions = torch.randint(10, (64,), generator=generator)
    found = tensor(ask(answer, p, decisions), (64,))
    if not found.isfinite().all():
        off("the result has values that are infinite or not numbers")
    believed = p.gather(1, decisions[:, None]).squeeze(1)
    if _same_order(found, -believed):
        return "any falling function of that probability will do: a ROC looks at the order only"
    if len(found.unique()) < 3:
        off("yes or no gives a single point of the curve; probabilities rank the images")
    slips = [
        (believed, "that is high where the two agree; suspicious is where they do not"),
        (-p.amax(1), "that is doubt of its own decision; what does it think of the teacher's?"),
        (p.amax(1), "sure of its own decision is not yet in doubt of the teacher's"),
    ]
    for score, hint in slips:
        if _same_order(found, score):
            off(hint)
    off("the less the second network believes in the teacher's decision, the higher")


def _same_order(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.argsort(stable=True), other.argsort(stable=True))
