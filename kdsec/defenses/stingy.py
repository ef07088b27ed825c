"""The Stingy Teacher: answer with the few largest probabilities and nothing else.

Ma et al., "Stingy Teacher: Sparse Logits Suffice to Fail Knowledge Distillation", ICLR 2022 workshop
PAIR2Struct.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError

# What stands for minus infinity. Its softmax is exactly 0 in float32 at every temperature below 9,000
# (exp(-104) is the first to vanish), and unlike the real one it survives arithmetic: 0 * log 0 is 0, a mean
# is a number, a stored answer can be read back and compared. It needs float32: half precision ends at 65,504.
NOTHING = -1e6


class Stingy(nn.Module):
    r"""A teacher with all but its ``keep`` largest logits removed. No training; its decisions never change.

    .. math:: q = \sigma_\tau\big(\mathrm{top}_n(f_T(x))\big), \qquad q_k = 0 \text{ outside the } n \text{
    largest}

    Probabilities, not logits, become zero: the authors' code sets the other logits to minus infinity. One
    kept logit is a hard label, all of them the teacher itself; if the answers mislead, then in between.

    Args:
        teacher: images to logits; put into eval mode here.
        keep: k, in 1..K; the authors keep 2 of 10 classes, 10 of 100, 20 of 200.

    Raises:
        KdsecError: fewer than one logit to keep, or (at the first answer) more than there are.
    """

    def __init__(self, teacher: nn.Module, keep: int) -> None:
        super().__init__()
        if keep < 1:
            raise KdsecError(f"keep={keep} must be 1 or more; 1 answers with the decision alone")
        self.teacher = teacher
        self.keep = keep
        self.eval()

    def extra_repr(self) -> str:
        return f"keep={self.keep}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)``, float32, of which ``keep`` are the teacher's and the others ``NOTHING``."""
        return keep_largest(self.teacher(images).float(), self.keep, NOTHING)


def keep_largest(logits: Tensor, keep: int, fill: float = -torch.inf) -> Tensor:
    """The ``keep`` largest logits of each row where they are, ``fill`` everywhere else.

    Raises:
        KdsecError: ``keep`` is not between 1 and the number of classes.
    """
    if not 1 <= keep <= logits.shape[1]:
        raise KdsecError(f"keep={keep} of {logits.shape[1]} logits; choose 1 to {logits.shape[1]}")
    values, where = logits.topk(keep, dim=1)
    return torch.full_like(logits, fill).scatter(1, where, values)
