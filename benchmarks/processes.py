"""What takes a process of its own to measure: importing kdsec, and running the chapters."""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from torch import nn

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALLOWED_SECONDS = 60.0  # for each chapter at the quick profile
OURS, THEIRS = "kdsec, kdsec.run", "torch"


def measure_import(rounds: int) -> dict[str, Any]:
    """Seconds to import kdsec, with all that a chapter holds in its hand, over seconds to import torch."""
    for names in (OURS, THEIRS):
        import_seconds(names)  # the first time compiles, and reads from the disk
    turns = [(import_seconds(OURS), import_seconds(THEIRS)) for _ in range(rounds)]
    return {
        "ratio": statistics.median(ours / theirs for ours, theirs in turns),
        "kdsec_seconds": statistics.median(ours for ours, _ in turns),
        "torch_seconds": statistics.median(theirs for _, theirs in turns),
        "ratios": [ours / theirs for ours, theirs in turns],
    }


def import_seconds(names: str) -> float:
    """Measured inside a fresh interpreter: its own start, the same for all, would flatter a ratio."""
    clock = f"import time; start = time.perf_counter(); import {names}; print(time.perf_counter() - start)"
    return float(python("-c", clock))


def measure_quick_book(rounds: int) -> dict[str, Any]:
    """60 s over the seconds that the slowest chapter takes at the quick profile, all trained anew."""
    turns = [{chapter: chapter_seconds(chapter) for chapter in CHAPTERS} for _ in range(rounds)]
    middle = {chapter: statistics.median(turn[chapter] for turn in turns) for chapter in CHAPTERS}
    slowest = max(middle.values())
    return {
        "ratio": ALLOWED_SECONDS / slowest,
        "seconds": slowest,
        "allowed_seconds": ALLOWED_SECONDS,
        "seconds_by_chapter": middle,
        "loop_seconds": loop_seconds(),
    }


def loop_seconds(rounds: int = 10) -> float:
    """Seconds that this machine takes for a fixed loop of plain torch: the median over ``rounds``.

    A limit in these seconds holds on a slow machine too, and beside other work.
    """
    program = f"from benchmarks.processes import plain_loop; print(*[plain_loop() for _ in range({rounds})])"
    return statistics.median(map(float, python("-c", program, OMP_NUM_THREADS="1").split()))


def plain_loop(steps: int = 40) -> float:
    """Seconds of ``steps`` passes, forward and backward, through one convolution of 64 channels."""
    images = torch.randn(128, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    layer = nn.Conv2d(64, 64, 3, padding=1)
    began = time.perf_counter()
    for _ in range(steps):
        layer(images).relu().square().mean().backward()
    return time.perf_counter() - began


def chapter_seconds(chapter: str) -> float:
    """Of ``kdsec run CHAPTER``: the command, its kernel and writing the page; no cache is at hand."""
    with tempfile.TemporaryDirectory(prefix="kdsec-benchmark-") as folder:
        out, cache = (os.path.join(folder, name) for name in ("out", "cache"))
        arguments = (chapter, "--profile", "quick", "--seeds", "0", "--fresh", "--out", out)
        began = time.perf_counter()
        python("-m", "kdsec", "run", *arguments, KDSEC_CACHE=cache)
        return time.perf_counter() - began


def python(*arguments: str, **variables: str) -> str:
    """What a fresh interpreter that finds this checkout prints.

    Raises:
        KdsecError: it failed; with the last line of what it said.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        *_, last = ["no message", *filter(None, done.stderr.splitlines())]
        raise KdsecError(f"what was to be measured ended with status {done.returncode}: {last}")
    return done.stdout
