"""Checks for the exercises of the chapter on distillation and how it steals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from kdsec.distill import kd_loss
from kdsec.exercises import ask, compare, exercise, number, off, tensor


@exercise
def yardstick(answer: Any, reported: Mapping[str, float]) -> str:
    """Points that a defence takes from the best thief, by a table of students' accuracies in per cent."""
    before = reported["soft labels, honest teacher"]
    left = {name: value for name, value in reported.items() if name != "soft labels, honest teacher"}
    fooled = left["soft labels, protected teacher"]
    best = max(left.values())
    slips = [
        (
            before - fooled,
            "that is what one thief loses, the one that still trusts soft labels; the best does not",
        ),
        (before, "do not count from zero: what does the best thief still have?"),
        (
            before - left["labels of one's own"],
            "with labels of one's own there is a better loss: smooth them",
        ),
        (
            before - left["the same, smoothed"],
            "near; the protected teacher still says something that is better",
        ),
        (best - before, "the other way around: what is taken away counts positive"),
        (best, "that is what the best thief is left with; how much was it before?"),
    ]
    compare(number(answer), before - best, slips, "before, minus the best of all rows that are left", 1e-6)
    return "the advertised thief loses most of what there was, the best one next to nothing"


@exercise
def gradient(answer: Any) -> str:
    """``answer(z_S, z_T, y, tau, alpha)``: the gradient of the distillation loss by the student's logits."""
    z_S, z_T = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(1))
    y, tau, alpha = torch.arange(16) % 10, 4.0, 0.7
    z = z_S.clone().requires_grad_()
    (right,) = torch.autograd.grad(kd_loss(z, z_T, y, tau, alpha), z)
    found = tensor(ask(answer, z_S, z_T, y, tau, alpha), z_S.shape)

    soft = ((z_S / tau).softmax(1) - (z_T / tau).softmax(1)) / len(y)
    hard = (z_S.softmax(1) - F.one_hot(y, 10)) / len(y)
    softened = ((z_S / tau).softmax(1) - F.one_hot(y, 10)) / len(y)
    slips = [
        (-right, "the sign: a gradient points to where the loss grows"),
        (len(y) * right, "the loss is a mean over the batch: divide by the number of images"),
        (alpha * tau**2 * soft + (1 - alpha) * hard, "τ² once too often: the derivative of z/τ is 1/τ"),
        (alpha / tau * soft + (1 - alpha) * hard, "the factor τ² of the loss is missing"),
        (alpha * soft + (1 - alpha) * hard, "a factor is missing: τ² from the loss, 1/τ from z/τ"),
        (alpha * tau * soft + (1 - alpha) * softened, "the label's term is not softened: there τ is 1"),
        ((1 - alpha) * tau * soft + alpha * hard, "alpha is the weight of the teacher's term"),
        (alpha * tau * soft, "the label's term is missing"),
        ((1 - alpha) * hard, "the teacher's term is missing"),
    ]
    compare(found, right, slips, "two terms, each a softmax minus a target; check weights and factors", 1e-5)
    return "both terms are softmax minus target; only the target and the temperature differ"


@exercise
def rounding(answer: Any) -> str:
    """``answer(rounded)``: logits (N, K) whose softmax gives rounded probabilities back."""
    generator = torch.Generator().manual_seed(1)
    rounded = (4 * torch.randn(32, 10, generator=generator)).softmax(1).mul(10).round().div(10)
    found = tensor(ask(answer, rounded), rounded.shape)
    if not found.isfinite().all():
        off("log 0 is minus infinity and makes the loss nan: put something small in the place of zero")
    slips = [
        (rounded.softmax(1), "these are probabilities still; a softmax of numbers in [0, 1] is nearly even"),
        ((rounded + 0.1) / (rounded + 0.1).sum(1, keepdim=True), "what stands for zero is too large"),
    ]
    hint = "the softmax of the result should be the rounded probabilities, to a hundredth"
    compare(found.softmax(1), rounded / rounded.sum(1, keepdim=True), slips, hint, 0.01)
    return "rounded answers can be softened and distilled like any others"


@exercise
def temperature(answer: Any) -> str:
    """The expected maximum of three independent standard normal numbers, which is 3 / (2 sqrt(pi))."""
    slips = [
        (0.0, "each of the three is right on average, but the largest is not drawn at random"),
        (torch.pi**-0.5, "that would be the largest of two"),
        (3 * torch.pi**-0.5, "that is the gap between the largest and the smallest"),
    ]
    hint = "simulate it: torch.randn(100_000, 3), the largest of each row, the mean of these"
    compare(number(answer), 1.5 * torch.pi**-0.5, slips, hint, 0.03)
    return "reported on the images it was chosen on, the winner looks better by nearly a standard error"
