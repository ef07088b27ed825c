r"""Logits: the check of what a network returns, and everything computed from logits alone.

Notation: logits ``z`` are ``(B, K)``; :math:`\sigma_\tau(z)` is the softmax of :math:`z / \tau`. With a
*positive* class chosen for each image (its label, or the decision), the other K - 1 classes are its
*negatives*. A logit of minus infinity is a probability of zero, and 0 log 0 = 0 in every divergence.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number

# A finite logit in place of minus infinity. Its softmax is exactly 0 in float32 at every temperature below
# 9,000, and unlike the real one it survives arithmetic. It needs float32: half precision ends at 65,504.
NOTHING = -1e6
LOWEST = -1e30  # the same for log-probabilities, for rows in which all are minus infinity

# How negatives can be reversed. With p the probabilities among the n negatives:
READINGS = {
    "copy": "p itself: the control, which is decoupled distillation",
    "rank": "the values of p dealt out in reverse order: the largest to the least likely class",
    "complement": "(1 - p) / (n - 1)",
    "negate": "proportional to 1 / p: the logits with their signs changed",
    "uniform": "1 / n: nothing is reversed, the differences are gone",
    "linear rank": "proportional to 1, 2, ..., n from the likeliest class to the least likely",
    "away": "no target: as far from p as it goes (the nasty teacher, on the negatives alone)",
}


def as_logits(output: Any, count: int, *, values: bool | None = None) -> Tensor:
    """``output`` itself, if it is a tensor of logits ``(count, K)``.

    Args:
        output: what a network returned for ``count`` images.
        count: number of images.
        values: check the numbers too. None: on a CPU only, as a GPU's would have to be waited for.

    Raises:
        KdsecError: anything but a tensor (says how to wrap the network), another shape, a value that is not
            a number or plus infinity, or a row of minus infinities.

    Warns:
        UserWarning: every row is a probability distribution.
    """
    if not isinstance(output, Tensor):
        raise KdsecError(f"the network returned {_described(output)}; {_wrapping(output)}")
    if output.ndim != 2 or len(output) != count or output.shape[1] < 1 or output.is_complex():
        raise KdsecError(
            f"the network returned a tensor {tuple(output.shape)} of {output.dtype} for {count} images; "
            f"logits must be real numbers of shape ({count}, K)"
        )
    return check_values(output) if values or (values is None and not output.is_cuda) else output


def check_values(logits: Tensor) -> Tensor:
    """``logits`` ``(N, K)``, whose numbers have been looked at; see ``as_logits``."""
    if not bool(logits.amax(1).isfinite().all()):
        raise KdsecError(
            "the network returned a value that is not a number or is infinite; only minus infinity beside "
            "finite logits is allowed (a probability of zero). Check its weights and its input"
        )
    if _are_probabilities(logits):
        warnings.warn(
            "the network seems to return probabilities; kdsec takes logits and applies the softmax itself. "
            "Remove the network's last softmax, or return the logarithm of its output",
            stacklevel=3,
        )
    return logits


def _are_probabilities(rows: Tensor) -> bool:
    if not len(rows) or rows.shape[1] < 2 or not rows.is_floating_point():
        return False
    return bool(((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() < 1e-2)).all())


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dict with keys {sorted(map(str, output))}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)} parts"
    return "None" if output is None else f"a {type(output).__name__}"


def _wrapping(output: Any) -> str:
    """How to get at the logits inside ``output``."""
    if isinstance(output, Mapping):
        key = "logits" if "logits" in output else next(iter(output), "logits")
        access = f"model(x)[{key!r}]"
    elif hasattr(output, "logits"):
        access = "model(x).logits"
    elif isinstance(output, list | tuple):
        access = "model(x)[0]"
    else:
        return "it must return a tensor of logits (N, K)"
    return f"wrap it in an nn.Module whose forward(x) returns a tensor (N, K), for example {access}"


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a number above 0; 1 leaves the softmax as it is, 4 is common."""
    check_number("temperature", temperature, above=0)


# Divergences


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse what is not logits, and two tensors that would only be broadcast to each other."""
    for logits in (student, teacher):
        as_logits(logits, len(logits) if isinstance(logits, Tensor) else 0, values=False)
    if student.shape != teacher.shape:
        raise KdsecError(
            f"logits {tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher differ "
            "in shape; both must be (B, K) with the same classes"
        )


def kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""The terms :math:`p \log(p / q)` of KL(p || q), of the shape of both; zero where p is."""
    zero = log_p == -torch.inf
    log_p, log_q = log_p.masked_fill(zero, 0), log_q.masked_fill(zero, 0)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none")


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities ``(B, K)``, the mean over the batch."""
    return kl_terms(log_p, log_q).sum() / len(log_p)


@checked(values=False)
def soft_cross_term(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""The teacher's term of distillation, :math:`\tau^2 \mathrm{KL}(\sigma_\tau(z_T) \| \sigma_\tau(z_S))`.

    Mean over the batch. The factor :math:`\tau^2` keeps its gradient comparable with the label's term as tau
    grows (Hinton et al. 2015, section 2).

    Args:
        student, teacher: logits ``(B, K)``.
        temperature: tau > 0.
    """
    check_same_shape(student, teacher)
    log_p, log_q = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (teacher, student))
    return temperature**2 * kl(log_p, log_q)


@checked(values=False)
def decoupled_terms(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of decoupled distillation (Zhao et al. 2022), each times tau^2, means over the batch.

    Args:
        student, teacher: logits ``(B, K)``.
        target: class ``(B,)`` that counts as the target.
        temperature: tau > 0.
    """
    check_same_shape(student, teacher)
    is_target = F.one_hot(target, student.shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits.float() / temperature, dim=1)
        others = log_p.masked_fill(is_target, -torch.inf)
        binary = torch.stack([log_p[is_target], others.logsumexp(1)], dim=1)  # the target, any other class
        among_others = log_p[~is_target].view(len(log_p), -1).clamp(min=LOWEST).log_softmax(1)
        return binary, among_others

    (student_binary, student_others), (teacher_binary, teacher_others) = split(student), split(teacher)
    tckd, nckd = kl(teacher_binary, student_binary), kl(teacher_others, student_others)
    return temperature**2 * tckd, temperature**2 * nckd


# Selections


@checked(values=False)
def keep_largest(logits: Tensor, keep: int, fill: float = -torch.inf) -> Tensor:
    """The ``keep`` largest logits of each row where they are, ``fill`` everywhere else.

    Raises:
        KdsecError: ``keep`` is not between 1 and the number of classes.
    """
    if not 1 <= keep <= logits.shape[1]:
        raise KdsecError(f"keep={keep} of {logits.shape[1]} logits; choose 1 to {logits.shape[1]}")
    values, where = logits.topk(keep, dim=1)
    return torch.full_like(logits, fill).scatter(1, where, values)


@checked(values=False)
def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The largest wrong logit minus the right one, ``(N,)``: above 0 where the label is not the answer.

    :math:`\max_{j \ne y} z_j - z_y`, after Carlini & Wagner 2017 (arXiv 1608.04644, section V.A, f_6). Unlike
    the cross-entropy it has no softmax that could saturate.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` in 0..K-1.
    """
    own = logits.gather(1, labels[:, None])
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True) - own).squeeze(1)


# Negatives and their reversal


@checked(values=False)
def negatives(logits: Tensor, positive: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities among the negatives ``(B, K-1)``, in the order of the classes, float32.

    The positive class is left out before the softmax, so that it can neither leak in nor underflow.

    Args:
        logits: ``(B, K)``.
        positive: ``(B,)`` in 0..K-1.
        temperature: above 0.

    Raises:
        KdsecError: fewer than three classes, a positive class outside 0..K-1, or a temperature of 0.
    """
    check_temperature(temperature)
    classes = logits.shape[1]
    if classes < 3:
        raise KdsecError(
            f"{classes} classes leave nothing to reverse beside the right one; give three or more, "
            "or use the nasty teacher (NastyLoss), which works with two"
        )
    if len(positive) and not 0 <= int(positive.min()) <= int(positive.max()) < classes:
        raise KdsecError(
            f"positive classes from {int(positive.min())} to {int(positive.max())} are outside "
            f'0..{classes - 1}; give labels of the network\'s own classes, or use positive="decision"'
        )
    is_negative = ~F.one_hot(positive, classes).bool()
    among = logits.float()[is_negative].view(-1, classes - 1).clamp(min=LOWEST)
    return (among / temperature).log_softmax(1)


@checked(values=False)
def replace_negatives(logits: Tensor, positive: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    r"""Logits of which :math:`\sigma_\tau` gives the positive class what it had and the others ``q``.

    Args:
        logits: ``(B, K)``.
        positive: ``(B,)`` in 0..K-1.
        log_q: log-probabilities among the negatives ``(B, K-1)``, in the order of the classes.
        temperature: tau; at other temperatures the positive class's probability changes.
    """
    log_p = (logits.float() / temperature).log_softmax(1)
    is_positive = F.one_hot(positive, logits.shape[1]).bool()
    left = log_p.masked_fill(is_positive, -torch.inf).logsumexp(1, keepdim=True)
    return temperature * log_p.masked_scatter(~is_positive, (left + log_q).to(log_p))


def reverse_negatives(log_p: Tensor, reading: str) -> Tensor:
    """Log-probabilities among the negatives ``(B, n)``, reversed; same shape, each row a distribution.

    ``negate`` undoes itself, and so does ``rank`` where no two probabilities are equal. ``complement`` turns
    the order around too, but leaves differences n - 1 times smaller.

    Args:
        log_p: float; each row's exponentials sum to one.
        reading: one of ``READINGS`` but ``away``, which has no target.
    """
    count = log_p.shape[1]
    order = log_p.argsort(dim=1, descending=True, stable=True)
    match check_choice("reading", reading, [name for name in READINGS if name != "away"]):
        case "rank":
            return torch.empty_like(log_p).scatter(1, order, log_p.gather(1, order.flip(1)))
        case "complement":
            # 1 - p is safe to compute where p <= 1/2. The largest p may round to 1; what is left beside it
            # is the sum of the others.
            top = order[:, :1]
            beside = log_p.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
            return (-log_p.exp()).log1p().scatter(1, top, beside).log_softmax(1)
        case "negate":
            return (-log_p).log_softmax(1)
        case "uniform":
            return torch.zeros_like(log_p).log_softmax(1)
        case "linear rank":
            ranks = torch.arange(1, count + 1, device=log_p.device).to(log_p).expand_as(log_p)
            return torch.empty_like(log_p).scatter(1, order, ranks.log()).log_softmax(1)
        case _:
            return log_p


@checked(values=False)
def reverse(logits: Tensor, positive: Tensor, reading: str, temperature: float) -> Tensor:
    r"""Honest logits ``(B, K)`` turned into the target's: :math:`\sigma_\tau` of them is the target.

    .. math:: p^* = \big[\,p_y,\ (1 - p_y)\, q\,\big], \qquad q = R(\hat p)

    with :math:`p = \sigma_\tau(z)`, y the positive class ``(B,)``, :math:`\hat p` the probabilities among the
    negatives and R the reading, one of ``READINGS``.

    Raises:
        KdsecError: as ``negatives``, and for an unknown reading.
    """
    log_q = reverse_negatives(negatives(logits, positive, temperature), reading)
    return replace_negatives(logits, positive, log_q, temperature)


@checked
def rank_agreement(first: Tensor, second: Tensor, positive: Tensor) -> float:
    """Spearman's rank correlation of two networks' negatives, from -1 to 1, mean over the images.

    Args:
        first, second: logits or scores ``(N, K)``.
        positive: the class ``(N,)`` that is left out.
    """
    ranks = [negatives(each, positive).argsort(1).argsort(1).double() for each in (first, second)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    spread = centred[0].square().sum(1)  # the same for both: they are permutations of one row
    return ((centred[0] * centred[1]).sum(1) / spread).mean().item()
