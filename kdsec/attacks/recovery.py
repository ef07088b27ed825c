"""Learned recovery: rebuild the defence, learn to undo it, and undo it on the real teacher's answers.

A thief who knows the method trains two shadow teachers on half of their own images, labelled by the victim's
decisions: an honest one and a protected one. On the other half they fit a small network from protected
answers to honest ones, and then distil from the victim's answers passed through it. The shadows cost queries
(the thief's images as they are, once) and training of their own, beside that of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from kdsec.attacks.extraction import (
    EXTRACTION_ATTACKS,
    POOL,
    RECOVERY,
    ExtractionAttack,
    soft_labels,
    with_decisions,
)
from kdsec.attacks.postprocessing import LogProbabilities, postprocess
from kdsec.data import ImageSet
from kdsec.entry import checked
from kdsec.errors import check_number
from kdsec.logits import soft_cross_term
from kdsec.oracle import Oracle, as_oracle
from kdsec.train import predict

# ``shadow(images) -> (honest, protected)``: two networks trained on labelled images, in eval mode.
Shadow = Callable[[ImageSet], tuple[nn.Module, nn.Module]]


class Recovery(nn.Module):
    """Log-probabilities ``(B, K)`` plus a correction by a network of one hidden layer, zero at first.

    It does not extrapolate (answers are cut to the range of ``example``), and the largest value stays with
    the decision, which protected teachers keep: both hold it where the shadows are unlike the victim.

    Args:
        example: log-probabilities ``(N, K)`` that it is fitted to.
        hidden: units of its hidden layer.
    """

    centre: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, example: Tensor, hidden: int = 64) -> None:
        super().__init__()
        classes = example.shape[1]
        self.register_buffer("centre", example.mean(0))
        self.register_buffer("scale", example.std().clamp(min=1e-3))
        self.register_buffer("low", example.amin(0))
        self.register_buffer("high", example.amax(0))
        self.correction = nn.Sequential(nn.Linear(classes, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        for start in self.correction[-1].parameters():
            nn.init.zeros_(start)

    def forward(self, log_p: Tensor) -> Tensor:
        decided, seen = log_p.argmax(1, keepdim=True), log_p.clamp(self.low, self.high)
        corrected = seen + self.scale * self.correction((seen - self.centre) / self.scale)
        top, own = corrected.max(1, keepdim=True), corrected.gather(1, decided)
        return corrected.scatter(1, top.indices, own).scatter(1, decided, top.values)


@checked(some=["protected", "honest"])
def fit_recovery(
    protected: Tensor, honest: Tensor, temperature: float, steps: int = 200, seed: int = 0
) -> Recovery:
    """The map from protected answers to honest ones, fitted by relative entropy at ``temperature``.

    Args:
        protected, honest: logits ``(N, K)`` of two networks for the same images.
        temperature: that of the distillation.
        steps: of Adam on all answers at once.
        seed: of the map's initial weights.
    """
    check_number("steps", steps, least=1, whole=True)
    log_p = LogProbabilities()(protected)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        recovery = Recovery(log_p).to(log_p.device)
        optimizer = torch.optim.Adam(recovery.correction.parameters(), 0.01, weight_decay=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            soft_cross_term(recovery(log_p), honest, temperature).backward()
            optimizer.step()
    return recovery.requires_grad_(False).eval()


def learned_recovery(shadow: Shadow) -> ExtractionAttack:
    """The attack on a teacher whose defence ``shadow`` rebuilds.

    Args:
        shadow: trains both shadow teachers. It is called once for each victim and set of images.
    """
    known: dict[str, tuple[Tensor, Tensor]] = {}
    maps: dict[tuple[str, float], Recovery] = {}

    def recovered(teacher: nn.Module, data: ImageSet, temperature: float) -> Oracle:
        teacher = as_oracle(teacher)
        decided = with_decisions(teacher, data.unlabelled())
        key = decided.checksum
        if key not in known:
            half = len(decided) // 2
            honest, protected = shadow(decided.subset(slice(0, half)))
            rest = decided.subset(slice(half, None))
            known[key] = predict(protected, rest), predict(honest, rest)
        if (key, temperature) not in maps:
            maps[key, temperature] = fit_recovery(*known[key], temperature)
        return postprocess(teacher, maps[key, temperature])

    return ExtractionAttack(partial(soft_labels, post=recovered, softened=True))


def pool(shadow: Shadow, names: Iterable[str] = POOL) -> dict[str, ExtractionAttack]:
    """The attacks of ``POOL`` (or others by name) against one teacher, with ``shadow`` for its recovery."""
    return {
        name: learned_recovery(shadow) if name == RECOVERY else EXTRACTION_ATTACKS[name] for name in names
    }
