"""What an audited model can serve instead of its probabilities, and what honest users lose by it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec.attacks.postprocessing import KeepTop, LogProbabilities
from kdsec.defenses.output_wrappers import Reversed, Rounded, TopK
from kdsec.errors import KdsecError
from kdsec.report.metrics import calibration_error, negative_log_likelihood

AS_IS, LABELS, BY_HAND = "probabilities", "labels", "labels by hand"
ALLOWED = "top-K, round-D, reversed, labels, or FILE.py:NAME of a protected version of the model"


@dataclass(frozen=True)
class Serving:
    """One way to answer.

    Attributes:
        name: for tables.
        table: logits ``(N, K)`` that this way of answering gives for all images of the audit.
        least: what an honest user reads a probability of zero as.
    """

    name: str
    table: Tensor
    least: float = 0.0


def serving(name: str, table: Tensor) -> Serving:
    """What ``name`` (``top-3``, ``round-1``, ``reversed``, ``labels``) makes of honest logits ``(N, K)``.

    ``top-K`` serves the K largest probabilities as they are; the other classes share the rest evenly, which
    is all that a reader of such an answer knows of them. ``round-D`` rounds to D decimals.

    Raises:
        KdsecError: an unknown name, or a K that leaves nothing to hide.
    """
    classes = table.shape[1]
    kind, _, number = name.partition("-")
    layer: nn.Module
    least = 0.0
    if name == LABELS:
        layer = TopK(1)
    elif name == "reversed" and classes > 2:
        layer = Reversed("negate")
    elif kind == "top" and number.isdecimal() and 1 <= int(number) < classes:
        layer = nn.Sequential(LogProbabilities(), KeepTop(int(number)))
    elif kind == "round" and number in "123456" and len(number) == 1:
        layer, least = Rounded(int(number)), 0.5 * 0.1 ** int(number)
    else:
        raise KdsecError(
            f"defence {name!r} of a model with {classes} classes; allowed are {ALLOWED}, with 1 <= K < "
            f"{classes} and 1 <= D <= 6"
        )
    return Serving(name, layer(table.float()), least)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The defences to try, each once; the classes are not known yet."""
    found = tuple(dict.fromkeys(name for name in names if name))
    for name in found:
        if ".py:" not in name and not re.fullmatch(r"labels|reversed|(top|round)-\d+", name):
            raise KdsecError(f"defence {name!r} is unknown; allowed are {ALLOWED}")
    return found


def cost(served: Serving, honest: Tensor, labels: Tensor | None) -> dict[str, float | None]:
    """What an honest user loses: shares, nats and distances; None where nothing can be said.

    Args:
        served: the answers they get.
        honest: logits ``(N, K)`` of the model as it is.
        labels: the truth ``(N,)``, where it is known.
    """
    told = served.name != LABELS  # labels come without probabilities
    p = served.table.softmax(1)
    q = p.clamp(min=served.least) if served.least else p
    logits = (q / q.sum(1, keepdim=True)).log()
    changed = (served.table.argmax(1) != honest.argmax(1)).float().mean().item()
    distance = (p - honest.softmax(1)).abs().sum(1).mean().item()
    known = labels is not None
    truth = torch.zeros(0, dtype=torch.long) if labels is None else labels
    return {
        "decisions changed": changed,
        "distance": distance if told else None,
        "accuracy": (served.table.argmax(1) == truth).float().mean().item() if known else None,
        "log loss": negative_log_likelihood(logits, truth) if known and told else None,
        "calibration error": calibration_error(logits, truth) if known and told else None,
    }
