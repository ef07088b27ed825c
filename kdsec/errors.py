"""The one exception that users see, the check of names against a list, and files written whole or not at
all."""

from __future__ import annotations

import contextlib
import difflib
import errno
import math
import numbers
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator


class KdsecError(Exception):
    """A mistake that the user can correct. The message is one line: what was wrong, what is allowed, what to
    do.

    The command line prints it without a traceback and exits with status 2.
    """


def disk_is_full(error: BaseException) -> bool:
    """Whether writing failed for want of space: a full disk or a used-up quota, as Python or Rust tell it."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "quota exceeded" in str(error).lower()


def check_choice(kind: str, value: object, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Args:
        kind: what the value names, for the message (``"profile"``, ``"model"``, ...).
        value: what the user gave.
        allowed: every accepted name.

    Raises:
        KdsecError: names the value, the nearest accepted name if there is one, and all accepted names.
    """
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    raise KdsecError(f"unknown {kind} {shown}; {hint}choose from: {', '.join(names)}")


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse a setting that is no finite number within its bounds; ``above`` and ``below`` exclude the bound.

    Raises:
        KdsecError: names the setting, its value and what is allowed.
    """
    kind = numbers.Integral if whole else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    low = least if least is not None else above
    high = most if most is not None else below
    if fits and low is not None:
        fits = value >= low if least is not None else value > low  # type: ignore[operator]
    if fits and high is not None:
        fits = value <= high if most is not None else value < high  # type: ignore[operator]
    if fits:
        return
    if low is not None and high is not None:
        allowed = f"in {'[' if least is not None else '('}{low}, {high}{']' if most is not None else ')'}"
    elif low is not None:
        allowed = f"{low} or more" if least is not None else f"above {low}"
    else:
        allowed = (
            "a finite number" if high is None else f"at most {high}" if most is not None else f"below {high}"
        )
    noun = "a whole number, " if whole and not isinstance(value, numbers.Integral) else ""
    finite = isinstance(value, numbers.Real) and math.isfinite(value)
    noun = noun or ("" if finite or allowed == "a finite number" else "a finite number, ")
    raise KdsecError(f"{name}={value!r} must be {noun}{allowed}")


def check_path(kind: str, value: object) -> pathlib.Path:
    """Return ``value`` as a path.

    Args:
        kind: what the path names, for the message (``"out"``, ...).
        value: what the user gave.

    Raises:
        KdsecError: it is not a path, or empty, as an unset variable of the shell is.
    """
    text = os.fsdecode(value) if isinstance(value, str | os.PathLike) else ""
    if not text or "\0" in text:
        raise KdsecError(
            f"{kind}={value!r} is not the path of a folder or file; is a variable of the shell unset?"
        )
    return pathlib.Path(text)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside ``path`` to write to; it replaces ``path`` when the block ends.

    Readers see the old file or the new one. A block that raises leaves the old file and nothing else.
    """
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
