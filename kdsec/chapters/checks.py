"""What every chapter asks of its settings, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdsec.errors import KdsecError


def check(
    settings: Any,
    *,
    positive: Iterable[str] = (),
    shares: Iterable[str] = (),
    counts: Iterable[str] = (),
    filled: Iterable[str] = (),
) -> None:
    """Refuse impossible values of a frozen dataclass of settings.

    Args:
        settings: the dataclass.
        positive: fields above 0, temperatures for instance; of a tuple, every entry.
        shares: fields from 0 to 1.
        counts: fields that are 1 or more.
        filled: tuples that must not be empty.

    Raises:
        KdsecError: names the setting, its value and what is allowed.
    """
    rules = [
        *((name, lambda value: value > 0, "above 0") for name in positive),
        *((name, lambda value: 0 <= value <= 1, "between 0 and 1") for name in shares),
        *((name, lambda value: value >= 1, "1 or more") for name in counts),
    ]
    for name, holds, allowed in rules:
        value = getattr(settings, name)
        if not all(map(holds, value if isinstance(value, tuple) else (value,))):
            raise KdsecError(f"setting {name}={value} must be {allowed}")
    for name in filled:
        if not getattr(settings, name):
            raise KdsecError(f"setting {name} is empty; give at least one")
