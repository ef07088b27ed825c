"""One progress bar that behaves in a terminal, in a notebook and in a log file.

``KDSEC_PROGRESS`` decides when set: ``bar`` (a tqdm bar), ``log`` (at most ten plain lines) or ``off``. When
it is not set, a terminal and an interactive notebook get the bar and everything else the lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kdsec.errors import choose

Item = TypeVar("Item")
STYLES = ("bar", "log", "off")


def style() -> str:
    """How to show progress here.

    Raises:
        KdsecError: ``KDSEC_PROGRESS`` is set to something else than bar, log or off.
    """
    if asked := os.environ.get("KDSEC_PROGRESS"):
        return choose("KDSEC_PROGRESS", asked, STYLES)
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    return "bar" if interactive else "log"


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield ``items`` while showing how many of ``total`` are done.

    The bar is plain text on standard error and wipes itself when finished: widgets would be stored in the
    executed notebook and make its page load scripts from elsewhere.
    """
    match style():
        case "bar":
            from tqdm import tqdm

            yield from tqdm(items, total=total, desc=label, leave=False, file=sys.stderr)
        case "log":
            yield from _lines(items, total, label)
        case _:
            yield from items


def _lines(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    start, tenth = time.monotonic(), 0
    for done, item in enumerate(items, 1):
        yield item
        if done * 10 // max(total, 1) > tenth:
            tenth = done * 10 // max(total, 1)
            print(
                f"{label}: {done}/{total} ({time.monotonic() - start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
