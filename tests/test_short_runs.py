"""Runs get to their end with the settings that planning accepts (slow: a run takes ten seconds or more)."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kdsec import config, models
from kdsec.errors import KdsecError

ROOT = pathlib.Path(__file__).parent.parent
SWEPT = ("opening", "sparse-teacher", "poisoned-distillation", "purification", "differentiators", "crossing")
# Few images, since only trainings are cut short.
BATCH = {"recipe": {"batch_size": 50}}
ONE = {"temperatures": [1.0], "rates": [1.0]}
FEW = {
    "opening": {"owner": 800, "queries": [100, 400], **BATCH},
    "sparse-teacher": {"owner": 800, "theft": 800, **BATCH},
    "reversed-maximization": {
        "owner": 800,
        "theft": 800,
        "readings": ["negate", "rank", "copy"],
        "strengths": [1.0],
        "suspects": ["normal", "negate"],
        "nasty_weights": [0.04],
        "sparse_alphas": [0.05],
        "thieves": ["soft labels", "negatives negated", "learned recovery"],
        "search": ONE,
        "temperatures": [1.0, 4.0],
        "drawn_from": ["normal", "negate"],
        "inversion": {"batches": 1, "batch_size": 50, "steps": 3},
        **BATCH,
    },
    "crossing": {
        "owner": 800,
        "theft": 800,
        "model": "cnn",  # of a thin fast network a student with a new head learns nothing
        "public_recipe": BATCH["recipe"],
        "probes": 40,
        "teachers": ["normal", "RML, negate", "PGD-AT"],
        "victims": ["normal", "PGD-AT"],
        "thieves": ["soft labels", "learned recovery"],
        "search": ONE,
        "steps": 3,
        "mimicry": {"steps": 5},
        **BATCH,
    },
    "purification": {
        "owner": 800,
        "other": 400,
        "probes": 40,
        "strong": 20,
        "robust_recipe": BATCH["recipe"],
        **BATCH,
    },
}


def run(folder: pathlib.Path, chapter: str, profile: str, overrides: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "tests.short_run", chapter, profile, json.dumps(overrides)]
    changed = {"KDSEC_CACHE": str(folder), "KDSEC_PROGRESS": "off", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | changed, capture_output=True, text=True)
    assert not done.returncode, f"{overrides}: {done.stderr[-2000:]}"


def extremes(name: str, value: Any) -> list[Any]:
    """Values far from that of a profile."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [1, 2, 4 * value]
    if isinstance(value, float):
        return [0.0, 1e-9, 20 * value, 1e4]
    if isinstance(value, str):
        return [each for each in models.names()[:8] if value in models.names() and each != value]
    if not isinstance(value, tuple) or not value:
        return []
    return [[value[0]], [value[-1]], *([each] for each in extremes(name, value[0]))]


def accepted(chapter: str) -> Iterator[dict[str, Any]]:
    """One changed setting of the quick profile each, as far as planning takes it."""
    for field in dataclasses.fields(at := config.settings(chapter, "quick")):
        value = getattr(at, field.name)
        if dataclasses.is_dataclass(value):
            tried = [
                {field.name: {inner.name: each}}
                for inner in dataclasses.fields(value)
                for each in extremes(inner.name, getattr(value, inner.name))
                if inner.name not in ("steps", "epochs")  # cut short anyway
            ]
        else:
            tried = [{field.name: each} for each in extremes(field.name, value)]
        for overrides in tried:
            try:
                config.settings(chapter, "quick", overrides)
            except KdsecError:
                continue
            yield overrides


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chapter", FEW)
def test_a_chapter_gets_to_its_end_on_photographs(tmp_path: pathlib.Path, chapter: str) -> None:
    run(tmp_path, chapter, "small", FEW[chapter])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chapter", SWEPT)
def test_a_setting_that_planning_accepts_does_not_fail_a_run(tmp_path: pathlib.Path, chapter: str) -> None:
    """A random one, the same every time; a longer search has found what ``config.checks`` refuses now."""
    run(tmp_path, chapter, "quick", random.Random(0).choice(list(accepted(chapter))))
