"""What the runner gives the processes that it starts, and how it shows them."""

from __future__ import annotations

import io
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from kdsec import launch
from kdsec.execute import Job


def environment(folder, threads, fresh=True):
    here = pathlib.Path(folder)
    job = Job("opening", "quick", 0, "cpu", {}, here, here, here, "feed")
    return launch._environment(job, threads, fresh=fresh)


def test_the_kernel_sees_the_users_folders_and_its_share_of_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDSEC_DATA", "sets")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    seen = environment(tmp_path, 3)
    assert seen["KDSEC_DATA"] == str(tmp_path / "sets") and "MPLBACKEND" not in seen
    assert seen["OMP_NUM_THREADS"] == "3" and seen["MKL_NUM_THREADS"] == "7"
    assert seen["KDSEC_RECIPE"] == "feed" and seen["KDSEC_FRESH"] == "1"


REUSE = """
import resource, torch
torch.set_num_threads(1)
images = torch.rand(2**18)  # a megabyte
def step():
    kept = [images.relu() for _ in range(8)]
for _ in range(10): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_memory_of_one_step_serves_the_next(tmp_path, monkeypatch):
    """With the values that glibc starts from, the eight megabytes come anew from the system in every step."""
    at_first = {"MALLOC_TRIM_THRESHOLD_": str(2**17), "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    for name in launch.KEEP_MEMORY:
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", REUSE]
    before, now = (
        float(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
        for env in (os.environ | at_first, environment(tmp_path, 1))
    )
    assert now < 3 < 30 < before


def test_who_asks_for_one_thread_gets_one(tmp_path, monkeypatch):
    """PyTorch prefers MKL's number to OpenMP's: setting the one must set the other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    seen = environment(tmp_path, 3, fresh=False)
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "1"


def test_a_terminal_gets_a_live_bar(monkeypatch):
    monkeypatch.setenv("KDSEC_PROGRESS", "bar")
    screen = io.StringIO()
    display = launch.Display(screen)
    display.cell("opening seed 0", 3, 9, "Stealing")
    display.say("a line")
    display.close("opening seed 0")
    assert "\r" in screen.getvalue() and "3/9" in screen.getvalue() and "a line\n" in screen.getvalue()
