"""The one exception a user of kdsec should ever see, and the check that raises it most often."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdsecError(Exception):
    """A mistake the user can mend. The message is one line: what was wrong, what is allowed, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def choose(kind: str, value: object, allowed: Iterable[str]) -> str:
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
    raise KdsecError(f"unknown {kind} {value!r}; {hint}choose from: {', '.join(names)}")
