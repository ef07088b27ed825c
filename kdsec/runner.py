"""Run chapters: each (chapter, seed) is one notebook in a process of its own, several at a time.

What there is to run, and what of it is done, ``kdsec.plan`` says. A run that fails or is
interrupted never touches the results of an earlier one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsec.errors import KdsecError
from kdsec.execute import Job
from kdsec.launch import Display, Launcher, cores
from kdsec.plan import RESULTS, is_done, plan, widest_gaps_first


@dataclass(frozen=True)
class Outcome:
    """What became of one (chapter, seed): ``status`` is done, resumed, failed or left (with a reason)."""

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
    out: str | pathlib.Path | None = None,
    fresh: bool = False,
    overrides: Mapping[str, Any] | None = None,
    notebooks: str | pathlib.Path | None = None,
    gaps_first: bool = False,
    minutes: float = math.inf,
) -> list[Outcome]:
    """Execute chapters and keep records and executed notebooks under ``out/<profile>/<chapter>/``.

    Args:
        chapters: names; none means all.
        profile: one of ``kdsec.chapters.PROFILES``.
        seeds: one run for each.
        jobs: how many run at once; the processor's cores are shared out among them.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: where results go; None means ``results`` here.
        fresh: run even what is done, and train anew instead of using the cache.
        overrides: settings to change from the profile's.
        notebooks: the folder of the chapters' notebooks; None means the repository's.
        gaps_first: begin with what closes the widest gaps in the scoreboard; see ``plan.widest_gaps_first``.
        minutes: after these no run is begun; those under way go on to their end.

    Returns:
        One outcome per chapter and seed, in order. Failed runs are among them, not raised.

    Raises:
        KdsecError: anything asked for that cannot be run; nothing was started then.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all processes are gone, and finished runs are kept.
    """
    target = pathlib.Path(out or RESULTS).absolute()
    with tempfile.TemporaryDirectory(prefix="kdsec-", ignore_cleanup_errors=True) as scratch:
        asked = plan(
            chapters,
            profile,
            seeds,
            device=device,
            out=out,
            overrides=overrides,
            notebooks=notebooks,
            scratch=pathlib.Path(scratch),
        )
        if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
            raise KdsecError(f"jobs {jobs!r} is not a whole number from 1 up")
        if not minutes > 0:
            raise KdsecError(f"minutes {minutes!r} is not a number above 0")
        display = Display()
        _check_writable(target)
        todo = []
        outcomes: dict[str, Outcome] = {}
        for job in asked:
            if not fresh and is_done(job, page_needed=out is not None):
                outcomes[job.label] = _outcome(job, "resumed", 0.0)
                display.say(f"{job.label}: done before, kept (--fresh runs it again)")
            else:
                todo.append(job)
        if any(not job.page for job in todo):
            display.say("Jupyter is not here (pip install 'kdsec[run]'): records are made, but no pages")
        if gaps_first:
            todo = widest_gaps_first(todo)
        threads = max(1, cores() // max(1, min(jobs, len(todo))))
        deadline = time.monotonic() + 60 * minutes
        outcomes |= _run_all(todo, jobs, Launcher(display, threads, fresh), display, deadline)
    return [outcomes[job.label] for job in asked]


def _run_all(
    todo: list[Job], jobs: int, launcher: Launcher, display: Display, deadline: float
) -> dict[str, Outcome]:
    """Run every job, at most ``jobs`` at a time; on any interruption stop them all first."""
    outcomes: dict[str, Outcome] = {}
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=jobs)
    with _interruptible():
        try:
            pending = {pool.submit(_timed, launcher, job, deadline): job for job in todo}
            while pending:
                done, _ = concurrent.futures.wait(
                    pending, timeout=1.0, return_when=concurrent.futures.FIRST_COMPLETED
                )
                display.tick()
                for future in done:
                    job = pending.pop(future)
                    outcomes[job.label] = outcome = future.result()
                    display.say(f"{job.label}: {outcome.reason or f'done in {outcome.seconds:.0f} s'}")
        except KeyboardInterrupt:
            kept = f"{len(outcomes)} of {len(todo)} runs finished and kept"
            raise KeyboardInterrupt(kept) from None
        finally:
            launcher.stop()
            pool.shutdown(cancel_futures=True)
    return outcomes


def _timed(launcher: Launcher, job: Job, deadline: float) -> Outcome:
    began = time.monotonic()
    if began > deadline:
        return _outcome(job, "left", 0.0, "left: the time is over; the same command goes on from here")
    reason = launcher.run(job)
    failed = job.final(".failed.ipynb")
    if reason and failed.exists():
        reason += f"; the notebook up to there is {short(failed)}"
    status = "failed" if reason else "done"
    return _outcome(job, status, time.monotonic() - began, f"failed: {reason}" if reason else "")


def _outcome(job: Job, status: str, seconds: float, reason: str = "") -> Outcome:
    where = job.final(".failed.ipynb" if status == "failed" else ".csv")
    where = where if where.exists() else where.parent  # a full disk keeps no failed notebook either
    return Outcome(job.chapter, job.seed, status, seconds, where, reason)


def short(path: pathlib.Path) -> str:
    """``path`` as the user would type it: relative if it lies below the working directory."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and a closed terminal stop a run as Ctrl-C does, and stopping itself not be stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = [kind for name in ("SIGINT", "SIGTERM", "SIGHUP") if (kind := getattr(signal, name, None))]
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def interrupt(*_: Any) -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)
        raise KeyboardInterrupt

    for kind in kinds:
        if before[kind] != signal.SIG_IGN:  # nohup
            signal.signal(kind, interrupt)
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])


def _check_writable(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise KdsecError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
