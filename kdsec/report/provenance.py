"""Where a number comes from: code version, library versions, machine, data, settings.

Nothing here names a person, a host or a folder: records are published with the book.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import kdsec
from kdsec.errors import KdsecError

PACKAGE = pathlib.Path(kdsec.__file__).resolve().parent
LIBRARIES = ("torch", "torchvision", "numpy")


def provenance(
    device: Any,
    seconds: float,
    data: Mapping[str, str],
    settings: Any,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe the run that is ending, as a dictionary that JSON can hold.

    Args:
        device: the torch device that trained.
        seconds: wall time of the whole run.
        data: checksum of every data set that was used, by name.
        settings: the chapter's frozen settings, overrides applied.
        overrides: the settings that were not the profile's own.

    Returns:
        ``recipe`` (what ``kdsec run`` compares to know whether the record is still what the code would
        produce; None when the notebook was run by hand), ``date`` in UTC, ``seconds``, ``commit`` and
        ``dirty`` of kdsec's own checkout (None outside one), ``versions``, ``machine``, ``data``,
        ``settings`` and ``overrides``.

    Raises:
        KdsecError: a setting is of a kind that JSON cannot hold.
    """
    commit, dirty = commit_of(repository())
    return {
        "recipe": os.environ.get("KDSEC_RECIPE"),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 1),
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "machine": machine(device),
        "data": dict(data),
        "settings": _plain(settings),
        "overrides": _plain(overrides or {}),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, of kdsec and of the libraries that make its numbers; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "kdsec": kdsec.__version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine(device: Any) -> dict[str, Any]:
    """The hardware, not the machine's name: ``device``, ``gpu`` (None on the CPU), ``cpu``, ``threads``."""
    import torch

    kind = torch.device(device).type
    return {
        "device": kind,
        "gpu": torch.cuda.get_device_name(device) if kind == "cuda" else None,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
    }


def repository() -> pathlib.Path | None:
    """The checkout this package is imported from (an editable install); None for an installed wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def bundled(name: str) -> pathlib.Path | None:
    """The folder ``name`` that comes with the package: in the checkout, or ``kdsec/_name`` in a wheel."""
    root = repository()
    folder = root / name if root else PACKAGE / f"_{name}"
    return folder if folder.is_dir() else None


def commit_of(root: pathlib.Path | None) -> tuple[str | None, bool | None]:
    """Commit of the checkout at ``root``, and whether its code differs from that commit.

    Results do not count as a difference: they change with every run. (None, None) if ``root`` is not the top
    of a git checkout: a parent folder's repository is somebody else's.
    """
    if root is None:
        return None, None
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != root.resolve():
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", "kdsec", "notebooks")
    return commit, None if commit is None or changes is None else bool(changes)


def _git(root: pathlib.Path, *arguments: str) -> str | None:
    """Output of a git command, None if it fails. In a git hook GIT_DIR names another repository: drop it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            env=clean,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _cpu() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """Only what JSON knows. Paths are refused rather than written down: they name a user's folders."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise KdsecError(
        f"a setting of type {type(value).__name__} cannot be recorded; use numbers, text or lists of them"
    )
