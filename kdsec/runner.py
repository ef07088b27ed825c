"""Run chapters: each (chapter, seed) is one notebook in a process of its own, several at a time.

What counts as done: the record (csv and json) is whole, and its ``recipe`` is today's, a fingerprint of
the chapter's settings with overrides, of the notebook's code cells and of the package's code. Prose may
change; an executed notebook takes it over without running again. In ``results/``, where a clone has only
records, a record suffices. In a folder that the user names, the executed notebook must be there
too, because ``make book`` builds its pages from it.

A run that fails or is interrupted never touches the results of an earlier one.
"""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsec import notebook
from kdsec.chapters import CHAPTERS, PROFILES, profiles, settings
from kdsec.errors import KdsecError, choose
from kdsec.execute import Job
from kdsec.imports import imported_files
from kdsec.launch import Display, Launcher, cores
from kdsec.report.provenance import PACKAGE, bundled
from kdsec.report.records import recipe_of

RESULTS = "results"
# Code that drives runs without taking part in them; what it does cannot change a number.
DRIVERS = {
    *("__init__.py", "__main__.py", "cli.py", "runner.py", "launch.py", "execute.py"),
    *("notebook.py", "progress.py", "imports.py"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one (chapter, seed): ``status`` is done, resumed or failed (then with a reason)."""

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

    Returns:
        One outcome per chapter and seed, in order. Failed runs are among them, not raised.

    Raises:
        KdsecError: anything asked for that cannot be run; nothing was started then.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all processes are gone, and finished runs are kept.
    """
    target = pathlib.Path(out or RESULTS).absolute()
    with tempfile.TemporaryDirectory(prefix="kdsec-", ignore_cleanup_errors=True) as scratch:
        plan = _plan(chapters, profile, seeds, device, out, overrides or {}, notebooks, pathlib.Path(scratch))
        if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
            raise KdsecError(f"jobs {jobs!r} is not a whole number from 1 up")
        display = Display()
        _check_writable(target)
        todo = []
        outcomes: dict[str, Outcome] = {}
        for job in plan:
            if not fresh and _is_done(job, page_needed=out is not None):
                outcomes[job.label] = _outcome(job, "resumed", 0.0)
                display.say(f"{job.label}: done before, kept (--fresh runs it again)")
            else:
                todo.append(job)
        threads = max(1, cores() // max(1, min(jobs, len(todo))))
        outcomes |= _run_all(todo, jobs, Launcher(display, threads, fresh), display)
    return [outcomes[job.label] for job in plan]


def _plan(
    chapters: Sequence[str],
    profile: str,
    seeds: Sequence[int],
    device: str,
    out: str | pathlib.Path | None,
    overrides: Mapping[str, Any],
    notebooks: str | pathlib.Path | None,
    scratch: pathlib.Path,
) -> list[Job]:
    """Check all that can be checked before anything runs, and list what there is to run."""
    choose("profile", profile, PROFILES)
    all_that_have_it = [name for name in CHAPTERS if profile in profiles(name)]
    names = list(dict.fromkeys(choose("chapter", name, CHAPTERS) for name in chapters or all_that_have_it))
    _check_seeds(seeds)
    _check_device(device)
    if overrides and out is None:
        raise KdsecError(
            f"changed settings ({', '.join(overrides)}) give other records than profile {profile}; "
            f"name another folder for them with --out"
        )
    for name, value in overrides.items():
        if not _is_literal(value):
            raise KdsecError(f"setting {name}={value!r} cannot be handed to a notebook; give a plain value")
    folder = pathlib.Path(notebooks) if notebooks is not None else bundled("notebooks")
    if folder is None:
        raise KdsecError(
            "the notebooks are in the repository, not in the installed package; "
            "run kdsec in a clone, or name their folder with --notebooks"
        )
    plan: list[Job] = []
    for name in names:
        recipe, path = _recipe(name, profile, overrides, folder)
        plan += [
            Job(
                chapter=name,
                profile=profile,
                seed=seed,
                device=device,
                overrides=dict(overrides),
                notebook=path,
                out=pathlib.Path(out or RESULTS).absolute(),
                scratch=scratch / f"{len(plan) + index}",
                recipe=recipe,
            )
            for index, seed in enumerate(seeds)
        ]
    return plan


def _recipe(
    chapter: str, profile: str, overrides: Mapping[str, Any], folder: pathlib.Path
) -> tuple[str, pathlib.Path]:
    """Fingerprint of all that decides the chapter's results, and its notebook, which is checked."""
    from kdsec.fingerprint import fingerprint, source_fingerprint

    path = (folder / CHAPTERS[chapter].notebook).absolute()
    source = notebook.read(path)
    notebook.check_parameters(source, path)
    cells = notebook.code(source)
    chosen = settings(chapter, profile, overrides)
    return fingerprint([chosen, cells, source_fingerprint(*_code_behind(chapter, cells))]), path


def _code_behind(chapter: str, cells: list[str]) -> list[pathlib.Path]:
    """The package's files that decide a chapter's results: what its cells and its settings import."""
    own = PACKAGE / "chapters" / f"{chapter.replace('-', '_')}.py"
    files = {own}.union(*(imported_files(code) for code in (*cells, own.read_text(encoding="utf-8"))))
    return sorted(file for file in files if file == own or not _is_bystander(file))


def _is_bystander(file: pathlib.Path) -> bool:
    """Code that takes no part in the results: what drives runs, and the settings of other chapters."""
    return file.name in DRIVERS if file.parent == PACKAGE else file.parent.name == "chapters"


def _is_done(job: Job, page_needed: bool) -> bool:
    """Whether the results are there and are what a run would produce; brings their prose up to date."""
    if recipe_of(job.out, job.profile, job.chapter, job.seed) != job.recipe:
        return False
    page = job.final(".ipynb")
    if not page.exists():
        return not page_needed
    try:
        executed = notebook.read(page)
        current = notebook.finished(notebook.read(job.notebook), executed, job.parameters)
    except KdsecError:
        return False  # a damaged page is made again
    if current != executed:
        notebook.write(current, page)
    return True


def _run_all(todo: list[Job], jobs: int, launcher: Launcher, display: Display) -> dict[str, Outcome]:
    """Run every job, at most ``jobs`` at a time; on any interruption stop them all first."""
    outcomes: dict[str, Outcome] = {}
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=jobs)
    with _interruptible():
        try:
            pending = {pool.submit(_timed, launcher, job): job for job in todo}
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


def _timed(launcher: Launcher, job: Job) -> Outcome:
    began = time.monotonic()
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


def _check_seeds(seeds: Sequence[int]) -> None:
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise KdsecError(f"seed {seed!r} is not a whole number from 0 to 2^32 - 1")
    if not seeds:
        raise KdsecError("no seed given; give at least one, e.g. 0")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if list(seeds).count(seed) > 1)
        raise KdsecError(f"seed {twice} is given twice; give each seed once")


def _check_device(device: str) -> None:
    choose("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda":
        from kdsec.run import resolve_device

        resolve_device(device)


def _check_writable(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise KdsecError(f"cannot write to {out}: {error.strerror}; choose another --out") from None


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
