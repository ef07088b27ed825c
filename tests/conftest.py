"""Tests draw without a screen, compute with one thread, begin with a seed, and share one browser.

The first in this process only: the notebooks' kernels keep their inline backend. The second in the kernels
too: two workers run side by side, and where two threads of each meet on two cores, small nets run ten times
slower.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

import matplotlib
import pytest
import torch

from kdsec import data
from tests import browser

matplotlib.use("agg")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Whatever a test or its fixtures draw at random is the same in every run, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> data.Splits:
    return data.load("digits")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a process: playwright allows no second one beside it."""
    path = browser.executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()
