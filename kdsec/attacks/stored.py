"""Attacks on answers that are bought once, one query an image, and looked up by an image's position."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from kdsec.attacks.extraction import ExtractionAttack, TrainSpec
from kdsec.attacks.postprocessing import KeepTop, LogProbabilities
from kdsec.data import ImageSet
from kdsec.distill import KD, HardLabels
from kdsec.oracle import Oracle
from kdsec.train import Loss


def stored(loss_of: Callable[[Tensor, float], Loss], *, tempered: bool = True) -> ExtractionAttack:
    """An attack on stored answers, logits ``(N, K)``.

    Args:
        loss_of: ``loss_of(answers, temperature)``, a loss that holds the answers.
        tempered: whether the temperature matters.
    """

    def prepare(
        student: nn.Module, oracle: Oracle, data: ImageSet, temperature: float, alpha: float, seed: int
    ) -> TrainSpec:
        return TrainSpec(student, data, loss_of(oracle.query(data), temperature))

    return ExtractionAttack(prepare, tempered=tempered)


def stored_attacks(
    smoothing: float, undo: Mapping[str, nn.Module] | None = None
) -> dict[str, ExtractionAttack]:
    """What a thief makes of stored answers, without labels of their own.

    Args:
        smoothing: of the decisions.
        undo: further attacks by name, each a module from log-probabilities ``(N, K)`` to ``(N, K)``.
    """
    seen, first = LogProbabilities(), KeepTop(1)

    def soft(layer: nn.Module) -> ExtractionAttack:
        return stored(lambda answers, temperature: KD(layer(seen(answers)), temperature, 1.0))

    return {
        "soft labels": stored(lambda answers, temperature: KD(answers, temperature, 1.0)),
        "negatives dropped": stored(lambda answers, _: KD(first(seen(answers)), 1.0, 1.0), tempered=False),
        "smoothed hard labels": stored(lambda answers, _: HardLabels(answers, smoothing), tempered=False),
        **{name: soft(layer) for name, layer in (undo or {}).items()},
    }
