"""Training-free protections: layers on a teacher's answers, logits ``(N, K)`` in and out.

``nn.Sequential(teacher, layer)`` is a protected teacher; ``layer(table)`` protects one stored table of
answers. The decision is the teacher's, up to what ``Reversed`` says. Prediction Poisoning, which looks for
the answer that misleads a copy most, is in ``kdsec.defenses.prediction_poisoning``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsec.entry import checked
from kdsec.errors import check_choice, check_number
from kdsec.logits import NOTHING, READINGS, check_temperature, keep_largest, reverse

TIE = 1e-3  # what the decision's logit is raised by where rounding makes others equal to it


@checked
class Reversed(nn.Module):
    """The target of reversed maximization itself: what a network that fitted it without error would answer.

    ``kdsec.logits.reverse`` with the decision as the positive class, which keeps its probability at
    ``temperature``. ``rank`` and ``uniform`` keep every decision, ``negate`` and ``complement`` those with a
    probability above 1/2: below, a reversed negative can be larger.

    Args:
        reading: one of ``kdsec.logits.READINGS`` but ``away``, which has no target.
        temperature: tau, above 0.
    """

    def __init__(self, reading: str = "negate", temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.reading = check_choice("reading", reading, [name for name in READINGS if name != "away"])
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"reading={self.reading}, temperature={self.temperature:g}"

    def forward(self, logits: Tensor) -> Tensor:
        return reverse(logits, logits.argmax(1), self.reading, self.temperature)


@checked
class Rounded(nn.Module):
    """Probabilities rounded to ``decimals`` places; those that become zero are ``NOTHING`` as logits.

    The decision keeps at least one unit of the last place, and wins ties.

    Args:
        decimals: 1 or more.
    """

    def __init__(self, decimals: int = 1) -> None:
        super().__init__()
        check_number("decimals", decimals, least=1, whole=True)
        self.decimals = decimals

    def extra_repr(self) -> str:
        return f"decimals={self.decimals}"

    def forward(self, logits: Tensor) -> Tensor:
        unit, top = 10.0**-self.decimals, logits.argmax(1, keepdim=True)
        p = (logits.float().softmax(1) / unit).round()
        p = p.scatter(1, top, p.gather(1, top).clamp(min=1))
        log_p = (p / p.sum(1, keepdim=True)).log().clamp(min=NOTHING)
        return log_p.scatter_add(1, top, torch.full_like(log_p, TIE)[:, :1])


@checked
class TopK(nn.Module):
    """The ``keep`` largest probabilities, renormalised; the others are zero. The stingy teacher's answers.

    Args:
        keep: 1 to K; 1 is a hard label.
    """

    def __init__(self, keep: int) -> None:
        super().__init__()
        check_number("keep", keep, least=1, whole=True)
        self.keep = keep

    def extra_repr(self) -> str:
        return f"keep={self.keep}"

    def forward(self, logits: Tensor) -> Tensor:
        return keep_largest(logits.float(), self.keep, NOTHING)
