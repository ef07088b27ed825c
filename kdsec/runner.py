"""Run chapters: each (chapter, seed) is one notebook in its own process, several at a time.

A run executes in a hidden folder beside its final place. Only when every cell has run and its record is whole
are record and page moved to their final names, so a run that fails or is killed changes no earlier result.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import math
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from tqdm import tqdm

from kdsec import notebook
from kdsec.errors import KdsecError, check_number
from kdsec.planning import RunSpec, checkout, is_done, plan, widest_gaps_first
from kdsec.report.records import location, recipe_of

STOP_SECONDS = 10.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A freed block of memory is kept for the next step. Getting each block of a megabyte from the system takes a
# tenth of a quick chapter's time on a virtual machine.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the largest that glibc accepts
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What became of one (chapter, seed). ``status``: done, resumed, failed or left; ``reason``: why.

    ``left``: the time was over before it was done. What it has trained is in the cache.
    """

    chapter: str
    seed: int
    status: str
    seconds: float
    where: pathlib.Path
    reason: str = ""


def run_chapters(
    chapters: Sequence[str] = (),
    profile: str = "quick",
    seeds: Sequence[int] = (0,),
    *,
    jobs: int = 1,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    overrides: Mapping[str, Any] | None = None,
    notebooks: str | os.PathLike[str] | None = None,
    gaps_first: bool = False,
    minutes: float = math.inf,
) -> list[Outcome]:
    """Execute chapters and keep records and pages under ``out/<profile>/<chapter>/``.

    A script calls this under ``if __name__ == "__main__":``, as it starts processes.

    Args:
        chapters: names; none means all.
        profile: one of ``kdsec.config.PROFILES``.
        seeds: one run for each.
        jobs: runs at a time; they share the processor's cores.
        device: one of ``DEVICES``.
        out: folder of the results; None means ``results`` here.
        fresh: run even what is done, and train again instead of using the cache.
        overrides: settings to change from the profile's.
        notebooks: folder of the chapters' notebooks; None means the repository's.
        gaps_first: order the runs by ``widest_gaps_first``.
        minutes: after these, runs under way are stopped; each loses the training that it is at.

    Returns:
        One outcome per chapter and seed, in order, failed runs included.

    Raises:
        KdsecError: something asked for cannot be run; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; all processes are gone, and finished runs are kept.
    """
    check_number("jobs", jobs, least=1, whole=True)
    if minutes != math.inf:
        check_number("minutes", minutes, above=0)
    deadline = time.monotonic() + 60 * minutes
    with _stop_requested() as stop:
        asked = plan(
            chapters, profile, seeds, device=device, out=out, overrides=overrides, notebooks=notebooks
        )
        new = not os.path.exists(asked[0].out)  # a name that is too long raises in pathlib
        _check_surroundings(asked[0].out)
        outcomes, todo = {}, []
        for spec in asked:
            if not fresh and is_done(spec, page_needed=out is not None):
                outcomes[spec.label] = _over(spec, "resumed", "done before, kept (--fresh runs it again)")
            else:
                todo.append(spec)
        if todo and not stop:
            todo = widest_gaps_first(todo) if gaps_first else todo
            before = _kept()
            outcomes |= _run_all(todo, jobs, fresh, deadline, stop)
            if any(each.status == "left" for each in outcomes.values()):
                _say(_time_is_over(list(outcomes.values()), _kept() - before, fresh))
        if stop:
            if new:
                with contextlib.suppress(OSError):  # what is in it stays
                    asked[0].out.rmdir()
            kept = sum(outcomes[spec.label].status == "done" for spec in todo if spec.label in outcomes)
            raise KeyboardInterrupt(f"{kept} of {len(todo)} runs finished and kept")
    return [outcomes[spec.label] for spec in asked]


def short(path: pathlib.Path) -> str:
    """``path`` as the user would type it: relative if it lies below the working directory."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def cores() -> int:
    """CPU cores that this process may use (a cluster grants fewer than the node has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """Hold ``folder``, empty, for this process alone, and delete it afterwards.

    A folder that a killed run left is taken over; its lock is gone with that process.

    Raises:
        KdsecError: another process is running the same chapter, profile and seed into the same place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise KdsecError("another process is running it; wait for that, or choose another --out") from None
    except OSError:
        pass  # a file system without locks
    try:
        for item in folder.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _check_surroundings(out: pathlib.Path) -> None:
    """Refuse a cache or ``out`` that cannot be written to, and an unknown ``KDSEC_PROGRESS``."""
    from kdsec.cache import check_folder
    from kdsec.train import progress_style

    check_folder()
    progress_style()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as trial:
            trial.write(bytes(4096))  # an empty file fits on a full disk
    except OSError as error:
        raise KdsecError(f"cannot write to {out}: {error.strerror}; choose another --out") from None


@contextlib.contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that gets the signals that ask this process to stop: Ctrl-C, SIGTERM, a closed terminal.

    The handler only notes the signal. Raising from it would lose it wherever Python ignores exceptions.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {kind: signal.getsignal(kind) for kind in STOP_SIGNALS}
    for kind, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(kind, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _run_all(
    todo: list[RunSpec], jobs: int, fresh: bool, deadline: float, stop: list[int]
) -> dict[str, Outcome]:
    """Run every spec, at most ``jobs`` at a time, until all are over or a signal is in ``stop``."""
    threads = max(1, cores() // min(jobs, len(todo)))
    waiting, running = collections.deque(todo), dict[Any, _Process]()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="kdsec-", ignore_cleanup_errors=True) as scratch:
        try:
            while (waiting or running) and not stop:
                if time.monotonic() > deadline:
                    break
                while waiting and len(running) < jobs:
                    spec = waiting.popleft()
                    process = _Process(spec, pathlib.Path(scratch, f"{len(waiting)}"), threads, fresh)
                    running[process.channel] = process
                for channel in connection.wait(list(running), timeout=0.5):
                    if outcome := running[channel].follow():
                        outcomes[running.pop(channel).spec.label] = outcome
                for process in running.values():
                    if process.bar:
                        process.bar.refresh()  # its clock goes on while a cell takes long
        finally:
            for process in running.values():
                process.channel.close()  # it then kills its kernel and ends
            for process in running.values():
                process.end()
    if not stop:
        for process in running.values():
            seconds = time.monotonic() - process.began
            outcomes[process.spec.label] = _over(process.spec, "left", "stopped: the time is over", seconds)
        outcomes |= {spec.label: _over(spec, "left", "not begun: the time is over") for spec in waiting}
    return outcomes


def _kept() -> int:
    """How many trainings and results the cache holds."""
    from kdsec.cache import home

    return len(list(home().glob("*.safetensors")))


def _time_is_over(outcomes: Sequence[Outcome], new: int, fresh: bool) -> str:
    """What a run that its time has ended has achieved, and how to go on, in a line."""
    done = sum(each.status != "left" for each in outcomes)
    again = f"the same command{' without --fresh' * fresh} goes on from here"
    if done or new:
        progress = f"{done} of {len(outcomes)} runs are over, {new} more trainings in the cache"
        return f"the time is over: {progress}; {again}"
    return f"the time is over and nothing was finished in it; {again}, but give it more --minutes"


class _Process:
    """The process of a run, seen from the runner, with the channel on which it reports, and its bar.

    It ends when the runner's end of the channel is closed, by the runner or because the runner was killed.
    """

    def __init__(self, spec: RunSpec, scratch: pathlib.Path, threads: int, fresh: bool) -> None:
        self.spec, self.began = spec, time.monotonic()
        self.bar: Any = None
        scratch.mkdir()
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        arguments = (spec, scratch, _environment(spec, scratch, threads, fresh), theirs)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        # Signals wait until the process has left the terminal's group: Ctrl-C is for the runner alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def follow(self) -> Outcome | None:
        """Take one message: a cell that begins is shown, the end gives the outcome."""
        try:
            message = self.channel.recv()
        except (EOFError, OSError):
            message = None  # it was killed
        if isinstance(message, tuple):
            self._show(*message)
            return None
        self.end()
        seconds = time.monotonic() - self.began
        if message == "":
            return _over(self.spec, "done", seconds=seconds)
        status = self.process.exitcode
        reason = message or f"its process ended with status {status}, perhaps because memory ran out"
        if (failed := self.spec.final(".failed.ipynb")).exists():
            reason += f"; the notebook up to there is {short(failed)}"
        return _over(self.spec, "failed", f"failed: {reason}", seconds)

    def end(self) -> None:
        """Wait for the process, kill it if that takes long, and remove what it may have left behind."""
        self.process.join(STOP_SECONDS)
        self.process.kill()  # its kernel notices and ends itself
        self.process.join()
        self.channel.close()
        if self.bar:
            self.bar.close()
        with contextlib.suppress(KdsecError, OSError), claimed(self.spec.staging):
            pass

    def _show(self, number: int, total: int, heading: str) -> None:
        from kdsec.train import progress_style

        label, how = self.spec.label, progress_style()
        if how == "log":
            _say(f"{label}: cell {number}/{total} ({time.monotonic() - self.began:.0f} s) {heading}".rstrip())
        elif how == "bar":
            form = "{desc} |{bar:20}| cell {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self.bar = self.bar or tqdm(
                total=total, desc=label, bar_format=form, leave=False, dynamic_ncols=True
            )
            self.bar.n = number
            self.bar.set_postfix_str(heading)


def _work(spec: RunSpec, scratch: pathlib.Path, environment: dict[str, str], channel: Any) -> None:
    """The process of a run: execute it, report each cell, and at the end what went wrong (or nothing)."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull, "wb") as nowhere:  # what the kernel and libraries print
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        with claimed(spec.staging):
            kernel = notebook.this_python(scratch / "kernel.json")
            watched = (spec, scratch, channel, kernel)
            threading.Thread(target=_end_with_the_runner, args=watched, daemon=True).start()
            failure = _execute(spec, kernel, lambda *cell: channel.send(cell))
    except KdsecError as error:
        failure = str(error)
    except OSError as error:
        path = error.filename or spec.final(".csv")
        failure = f"cannot write {path}: {error.strerror}; free some space or choose another --out"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    channel.send(" ".join(failure.split()))


def _end_with_the_runner(spec: RunSpec, scratch: pathlib.Path, channel: Any, kernel: Any) -> None:
    """When the runner closes its end of the channel or is killed: kill the kernel, leave nothing behind."""
    with contextlib.suppress(EOFError, OSError):
        channel.recv()
    if group := getattr(kernel.provisioner, "pgid", None):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for folder in (spec.staging, scratch.parent):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(130)


def _execute(spec: RunSpec, kernel: Any, report: Callable[[int, int, str], None]) -> str:
    """Run the notebook and put its results in place; returns what went wrong, empty if nothing did."""
    source = notebook.read(spec.notebook)
    spec.final(".failed.ipynb").unlink(missing_ok=True)
    os.chdir(spec.staging)
    prepared, executed = pathlib.Path("prepared.ipynb"), pathlib.Path("executed.ipynb")
    asked = source if spec.profile == "quick" else notebook.without_exercises(source)
    notebook.write(notebook.with_parameters(asked, spec.parameters), prepared)
    failure = notebook.execute(prepared, executed, kernel, report)
    if not failure and recipe_of(".", spec.profile, spec.chapter, spec.seed) != spec.recipe:
        failure = "the notebook ended without a record; its last cell must call run.finish()"
    if failure:
        if executed.exists():
            os.replace(executed, spec.final(".failed.ipynb"))
        return failure
    notebook.write(notebook.finished(source, notebook.read(executed), spec.parameters, spec.shown), executed)
    staged = location(".", spec.profile, spec.chapter, spec.seed, "")
    spec.final(".json").unlink(missing_ok=True)  # moved last: until it is there, the run counts as not done
    os.replace(staged.with_suffix(".csv"), spec.final(".csv"))
    os.replace(executed, spec.final(".ipynb"))
    for picture in staged.parent.glob("*.png"):  # what the chapter saved beside its rows
        os.replace(picture, spec.final(".csv").with_name(picture.name))
    os.replace(staged.with_suffix(".json"), spec.final(".json"))
    return ""


def _environment(spec: RunSpec, scratch: pathlib.Path, threads: int, fresh: bool) -> dict[str, str]:
    """What the kernel sees: the user's variables, without what would change the result."""
    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)  # the kernel's own backend puts figures into the notebook
    environment.update(
        KDSEC_RECIPE=spec.recipe,
        KDSEC_PROGRESS="off",
        KDSEC_FRESH="1" if fresh else "0",
        IPYTHONDIR=str(scratch / "ipython"),  # no start-up files or history of the user's
        JUPYTER_RUNTIME_DIR=str(scratch / "runtime"),
        PYDEVD_DISABLE_FILE_VALIDATION="1",
    )
    if spec.overrides:
        notebook.report_assertions(scratch / "ipython")
    for name in ("KDSEC_DATA", "KDSEC_CACHE", "KDSEC_RESULTS"):  # the kernel has another working directory
        if value := environment.get(name):
            environment[name] = str(pathlib.Path(value).expanduser().absolute())
    # PyTorch prefers MKL's number to OpenMP's: where only the latter is set, it is meant for both.
    wanted = environment.get(THREADS[0], str(threads))
    # Idle threads spin briefly, then sleep: on a busy machine small steps are otherwise ten times slower.
    defaults = dict.fromkeys(THREADS, wanted) | KEEP_MEMORY | {"GOMP_SPINCOUNT": "20000"}
    environment = defaults | environment
    # Run from a checkout, installed or not: the kernel must find the same kdsec, and name its commit.
    if root := checkout(spec.notebook.parent.parent):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = str(root) + (os.pathsep + known if known else "")
    return environment


def _over(spec: RunSpec, status: str, reason: str = "", seconds: float = 0.0) -> Outcome:
    """The outcome of a run, also said in a line."""
    _say(f"{spec.label}: {reason or f'done in {seconds:.0f} s'}")
    where = spec.final(".failed.ipynb" if status == "failed" else ".csv")
    where = where if where.exists() else where.parent  # a full disk keeps no failed notebook either
    return Outcome(spec.chapter, spec.seed, status, seconds, where, reason)


def _say(text: str) -> None:
    """Print a line on standard error, above the bars."""
    tqdm.write(text, file=sys.stderr)
