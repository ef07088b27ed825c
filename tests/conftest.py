"""Tests draw without a screen. In this process only: the notebooks' kernels keep their inline backend."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")
