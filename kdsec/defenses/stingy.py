"""The Stingy Teacher: answer with the few largest probabilities and nothing else.

Ma et al., "Stingy Teacher: Sparse Logits Suffice to Fail Knowledge Distillation", ICLR 2022 workshop
PAIR2Struct.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdsec.entry import checked
from kdsec.errors import check_number
from kdsec.logits import NOTHING, as_logits, keep_largest


@checked
class Stingy(nn.Module):
    r"""A teacher with all but its ``keep`` largest logits removed. No training; its decisions never change.

    .. math:: q = \sigma_\tau\big(\mathrm{top}_n(f_T(x))\big), \qquad q_k = 0 \text{ outside the } n \text{
    largest}

    Probabilities, not logits, become zero: the authors' code sets the other logits to minus infinity. One
    kept logit is a hard label, all of them the teacher itself.

    Args:
        teacher: images to logits; left in the mode it is in.
        keep: k, in 1..K; the authors keep 2 of 10 classes, 10 of 100, 20 of 200.

    Raises:
        KdsecError: fewer than one logit to keep, or (at the first answer) more than there are.
    """

    def __init__(self, teacher: nn.Module, keep: int) -> None:
        super().__init__()
        check_number("keep", keep, least=1, whole=True)
        self.teacher = teacher
        self.keep = keep
        self.training = teacher.training

    def extra_repr(self) -> str:
        return f"keep={self.keep}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)``, float32, of which ``keep`` are the teacher's and the others ``NOTHING``."""
        logits = as_logits(self.teacher(images), len(images)).float()
        return keep_largest(logits, self.keep, NOTHING)
