"""Tests draw without a screen, and compute with one thread.

The first in this process only: the notebooks' kernels keep their inline backend. The second in the kernels
too: two workers run side by side, and where two threads of each meet on two cores, small nets run ten times
slower.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("agg")
