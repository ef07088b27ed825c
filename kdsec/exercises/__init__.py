"""Checks of exercises: one module per chapter, one function per exercise.

The reader of a notebook fills in an ``answer`` or completes a function. The check prints one line and never
raises:

* ``not answered yet``, so that an untouched notebook runs from top to bottom;
* ``right: ...`` and why it matters;
* ``not yet: ...`` and what is wrong, by name for a typical mistake.

>>> from kdsec.exercises import opening as check
>>> check.temperature(None)
not answered yet

Right answers are computed, by the package or from the book's records, wherever they can be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor


class Off(Exception):
    """The answer is wrong; the message is the hint."""


class Unanswered(Exception):
    """Nothing was filled in."""


def exercise(judge: Callable[..., str]) -> Callable[..., None]:
    """A check from ``judge(answer, ...)``, which returns why a right answer matters and else raises Off."""

    @functools.wraps(judge)
    def check(answer: Any, *facts: Any) -> None:
        try:
            if _empty(answer):
                raise Unanswered
            print(f"right: {judge(answer, *facts)}")
        except Unanswered:
            print("not answered yet")
        except Off as off:
            print(f"not yet: {off}")

    return check


def _empty(answer: Any) -> bool:
    if isinstance(answer, Mapping):
        return all(_empty(each) for each in answer.values())
    return answer is None or answer is ... or (isinstance(answer, str) and not answer.strip())


def off(hint: str) -> NoReturn:
    """Refuse the answer with a hint."""
    raise Off(hint)


def number(answer: Any) -> float:
    """The answer as a float; a tensor or array of one number counts."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        off(f"give one number, not {_short(answer)}")


def choice(answer: Any, options: Iterable[str]) -> str:
    """The answer, if it is one of ``options``."""
    names = list(options)
    return answer if answer in names else off(f"choose one of {', '.join(map(repr, names))}")


def ask(function: Any, *arguments: Any) -> Any:
    """Result of the reader's function; an exception in it becomes a hint."""
    if not callable(function):
        off(f"give the function itself, not {_short(function)}")
    try:
        result = function(*arguments)
    except NotImplementedError:
        raise Unanswered from None
    except Exception as error:  # the reader's code may raise anything
        off(f"the function stops with {type(error).__name__}: {_short(error)}")
    if _empty(result):
        raise Unanswered
    return result


def tensor(answer: Any, shape: Iterable[int]) -> Tensor:
    """The answer as a float tensor of this shape, without gradient."""
    shape = tuple(shape)
    try:
        found = torch.as_tensor(answer).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        off(f"give a tensor of shape {shape}, not {_short(answer)}")
    if found.shape != shape:
        off(f"the shape is {tuple(found.shape)} and should be {shape}")
    return found


def compare(
    found: Any, right: Any, slips: Iterable[tuple[Any, str]], otherwise: str, atol: float = 1e-4
) -> None:
    """Refuse an answer that is not ``right``, with the hint for its mistake.

    Args:
        found, right: numbers or tensors of one shape.
        slips: results of typical mistakes, each with its hint.
        otherwise: the hint for any other mistake.
        atol: the largest difference that counts as none.
    """
    if _close(found, right, atol):
        return
    if not torch.as_tensor(found).isfinite().all():
        off("the result has values that are infinite or not numbers")
    off(next((hint for wrong, hint in slips if _close(found, wrong, atol)), otherwise))


def _close(one: Any, other: Any, atol: float) -> bool:
    one, other = (torch.as_tensor(each, dtype=torch.float64) for each in (one, other))
    return torch.allclose(one, other, atol=atol, rtol=0)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
