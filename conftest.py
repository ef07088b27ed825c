"""Settings for every test, and for the kernels in which nbval runs the notebooks."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from kdsec.runner import KEEP_MEMORY

# Set at import time: kernels inherit the environment, and no fixture runs before nbval starts one.
# A fresh cache, because a test that finds yesterday's checkpoint in it tests nothing.
_cache = tempfile.mkdtemp(prefix="kdsec-test-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["KDSEC_CACHE"] = _cache
os.environ["KDSEC_PROGRESS"] = "off"
# As `kdsec run` starts its kernels. OMP_NUM_THREADS is set in tests/conftest.py.
for _name, _value in KEEP_MEMORY.items():
    os.environ.setdefault(_name, _value)
