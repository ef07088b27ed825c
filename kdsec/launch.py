"""Start the processes that execute chapters, follow them on the screen, stop them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
from typing import Any, TextIO

from kdsec.errors import KdsecError
from kdsec.execute import Job, claimed
from kdsec.progress import style
from kdsec.report.provenance import repository

STOP_SECONDS = 10.0
FOLDERS = ("KDSEC_DATA", "KDSEC_CACHE")
# Memory that a step frees is kept for the next one. To fetch every page anew from the system, as glibc does
# with blocks of a megabyte, takes a tenth of a quick chapter's time on a virtual machine.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the largest that glibc takes
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Display:
    """Progress of several runs on standard error: a live bar each in a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._style = style()
        self._bars: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._lock = threading.Lock()

    def cell(self, label: str, number: int, total: int, heading: str) -> None:
        """Code cell ``number`` of ``total`` begins."""
        with self._lock:
            if self._style == "bar":
                self._bar(label, number, total, heading)
            elif self._style == "log":
                now = time.monotonic()
                seconds = now - self._began.setdefault(label, now)
                text = f"{label}: cell {number}/{total} ({seconds:.0f} s) {heading}"
                print(text.rstrip(), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._bars:
                from tqdm import tqdm

                tqdm.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)

    def tick(self) -> None:
        """Let the clocks of the bars go on while cells take long."""
        with self._lock:
            for bar in self._bars.values():
                bar.refresh()

    def close(self, label: str) -> None:
        """This run is over: wipe its bar."""
        with self._lock:
            if bar := self._bars.pop(label, None):
                bar.close()

    def _bar(self, label: str, number: int, total: int, heading: str) -> None:
        if label not in self._bars:
            from tqdm import tqdm

            form = "{desc} |{bar:20}| cell {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bars[label] = tqdm(
                total=total, desc=label, bar_format=form, leave=False, dynamic_ncols=True, file=self._stream
            )
        bar = self._bars[label]
        bar.n = number
        bar.set_postfix_str(heading)


class Launcher:
    """Runs jobs, each in a process of its own; ``run`` is called from one thread per job."""

    def __init__(self, display: Display, threads: int, fresh: bool) -> None:
        self._display, self._threads, self._fresh = display, threads, fresh
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def run(self, job: Job) -> str:
        """Execute ``job`` to its end; returns what went wrong, empty if nothing did."""
        job.scratch.mkdir()
        with (job.scratch / "log").open("w+b") as log:
            with self._lock:
                if self._stopping:
                    return "stopped before it began"
                process = self._start(job, log)
            try:
                failure = self._follow(job, process)
                process.wait()
            finally:
                self._display.close(job.label)
                self._running.discard(process)
            if failure is None and not self._stopping:
                with contextlib.suppress(KdsecError), claimed(job.staging):
                    pass  # whoever killed it left its staging folder: take that over and delete it
                failure = _post_mortem(process.returncode, job.scratch / "log")
            return failure or ""

    def stop(self) -> None:
        """End every process, with its kernel, and start no more."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # the kernel notices and ends itself

    def _start(self, job: Job, log: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # -P: a file named like a module in the user's folder must not be imported instead of it
            [sys.executable, "-P", "-c", "from kdsec.execute import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(job, self._threads, self._fresh),
            start_new_session=True,  # Ctrl-C reaches the runner only, which then stops all in good order
        )
        self._running.add(process)
        return process

    def _follow(self, job: Job, process: subprocess.Popen[bytes]) -> str | None:
        """Show progress until the process ends; its own account of a failure, None if it gave none."""
        assert process.stdin is not None and process.stdout is not None
        failure = None
        with process.stdin, process.stdout:
            with contextlib.suppress(BrokenPipeError):  # it died at once; the caller will see
                pickle.dump(job, process.stdin)
                process.stdin.flush()
            for line in process.stdout:
                event = json.loads(line)
                if "cell" in event:
                    number, total, heading = event["cell"], event["of"], event["heading"]
                    self._display.cell(job.label, number, total, heading)
                else:
                    failure = event.get("failed", "")
        return failure


def cores() -> int:
    """CPU cores that this process may use (a cluster grants fewer than the node has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment(job: Job, threads: int, fresh: bool) -> dict[str, str]:
    """What the process and its kernel see: the user's variables, without what would change the result."""
    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)  # the kernel's own backend puts figures into the notebook
    environment.update(
        KDSEC_RECIPE=job.recipe,
        KDSEC_PROGRESS="off",
        KDSEC_FRESH="1" if fresh else "0",
        IPYTHONDIR=str(job.scratch / "ipython"),  # no start-up files or history of the user's
        JUPYTER_RUNTIME_DIR=str(job.scratch / "runtime"),
        PYDEVD_DISABLE_FILE_VALIDATION="1",
    )
    for name in FOLDERS:  # the kernel has another working directory
        if value := environment.get(name):
            environment[name] = str(pathlib.Path(value).expanduser().absolute())
    # PyTorch takes MKL's number where both are set: whoever sets the first of these alone means it for all.
    wanted = environment.get(THREADS[0], str(threads))
    for name in THREADS:
        environment.setdefault(name, wanted)
    # Idle threads spin briefly, then sleep: on a busy machine small steps are otherwise ten times slower.
    environment.setdefault("GOMP_SPINCOUNT", "20000")
    for name, value in KEEP_MEMORY.items():
        environment.setdefault(name, value)
    if root := repository():  # a checkout that is not installed: the kernel must find the same kdsec
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = str(root) + (os.pathsep + known if known else "")
    return environment


def _post_mortem(status: int, log: pathlib.Path) -> str:
    if status < 0:
        return f"its process was killed (signal {-status}), perhaps because memory ran out"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"its process ended with status {status}: {last}"
