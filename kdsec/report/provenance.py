"""Provenance of a record: versions of code and libraries, machine, data, settings.

Records are published with the book, so nothing here names a person, a host or a folder.
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
    """Provenance of a run that ends now, as a dictionary for JSON.

    Args:
        device: the torch device that trained.
        seconds: wall time of the whole run.
        data: checksum of every data set used, by name.
        settings: of the chapter, overrides applied.
        overrides: the settings that differ from the profile's.

    Returns:
        ``recipe`` (by which ``kdsec run`` sees whether the record is up to date; None for a notebook that
        was run by hand), ``date`` in UTC, ``seconds``, ``commit`` and ``dirty`` of kdsec's checkout (None
        outside one), ``versions``, ``machine``, ``data``, ``settings`` and ``overrides``.

    Raises:
        KdsecError: a setting is of a type that JSON does not have.
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
    """Versions of Python, kdsec and the libraries behind its numbers; None for one that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version(), "kdsec": kdsec.__version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine(device: Any) -> dict[str, Any]:
    """The hardware: ``device``, ``gpu`` (None on the CPU), ``cpu``, ``threads``."""
    import torch

    kind = torch.device(device).type
    return {
        "device": kind,
        "gpu": torch.cuda.get_device_name(device) if kind == "cuda" else None,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
    }


def repository() -> pathlib.Path | None:
    """The checkout that this package is imported from; None for an installed wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def bundled(name: str) -> pathlib.Path | None:
    """A folder that comes with the package: ``name`` in a checkout, ``kdsec/_name`` in a wheel."""
    root = repository()
    folder = root / name if root else PACKAGE / f"_{name}"
    return folder if folder.is_dir() else None


def commit_of(root: pathlib.Path | None) -> tuple[str | None, bool | None]:
    """Commit of the checkout at ``root``, and whether its code or notebooks differ from that commit.

    (None, None) if ``root`` is not the top of a git checkout: a repository above it is another project's.
    """
    if root is None:
        return None, None
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != root.resolve():
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", "kdsec", "notebooks")
    return commit, None if commit is None or changes is None else bool(changes)


def committed(path: str) -> str | None:
    """Text of a file of kdsec's checkout at its current commit; None outside a checkout, or without one."""
    root = repository()
    return None if root is None or commit_of(root)[0] is None else _git(root, "show", f"HEAD:{path}")


def _git(root: pathlib.Path, *arguments: str) -> str | None:
    """Output of a git command; None if it fails. GIT_DIR, which git sets in hooks, is ignored."""
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
    """A value in the types of JSON. Paths are refused: they name a user's folders."""
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
