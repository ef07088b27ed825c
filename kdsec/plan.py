"""What there is to run: read from what the user wrote, checked before anything starts, put in order.

What counts as done: the record (csv and json) is whole, and its ``recipe`` is today's, a fingerprint of
the chapter's settings with overrides, of the notebook's code cells and of the package's code. Prose may
change; an executed notebook takes it over without running again. In ``results/``, where a clone has only
records, a record suffices. In a folder that the user names, the executed notebook must be there
too, because ``make book`` builds its pages from it; unless Jupyter is not installed, which makes them.
Its verdict shows the recorded runs: when these, or the claims about them, have changed, it is made again.
"""

from __future__ import annotations

import ast
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kdsec import notebook
from kdsec.chapters import CHAPTERS, PROFILES, profiles, settings
from kdsec.errors import KdsecError, choose
from kdsec.execute import Job
from kdsec.imports import imported_files
from kdsec.report.provenance import PACKAGE, bundled
from kdsec.report.records import recipe_of, recorded_folder

RESULTS = "results"
DEVICES = ("auto", "cpu", "cuda")
MOST_SEEDS = 1000
DECISIVE = 3  # fewer seeds decide no claim
# Code that drives runs without taking part in them; what it does cannot change a number.
DRIVERS = {
    *("__init__.py", "__main__.py", "cli.py", "plan.py", "runner.py", "launch.py", "execute.py", "plain.py"),
    *("notebook.py", "progress.py", "imports.py"),
}


def plan(
    chapters: Sequence[str],
    profile: str,
    seeds: Sequence[int],
    *,
    device: str = "auto",
    out: str | pathlib.Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    notebooks: str | pathlib.Path | None = None,
    scratch: pathlib.Path | None = None,
) -> list[Job]:
    """Check all that can be checked before anything runs, and list what was asked for, done or not.

    Args:
        chapters, profile, seeds, device, out, overrides, notebooks: as for ``kdsec.runner.run_chapters``.
        scratch: a folder for what the runs need while they run; None for a plan that is only looked at.

    Raises:
        KdsecError: anything asked for that cannot be run.
    """
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
    for name, value in (overrides or {}).items():
        if not _is_literal(value):
            raise KdsecError(f"setting {name}={value!r} cannot be handed to a notebook; give a plain value")
    folder = pathlib.Path(notebooks) if notebooks is not None else bundled("notebooks")
    if folder is None:
        raise KdsecError(
            "the notebooks are in the repository, not in the installed package; "
            "run kdsec in a clone, or name their folder with --notebooks"
        )
    place = pathlib.Path(out or RESULTS).absolute()
    shown = _shown(place)
    jobs: list[Job] = []
    for name in names:
        recipe, path = _recipe(name, profile, overrides or {}, folder)
        jobs += [
            Job(
                chapter=name,
                profile=profile,
                seed=seed,
                device=device,
                overrides=dict(overrides or {}),
                notebook=path,
                out=place,
                scratch=(scratch or pathlib.Path()) / f"{len(jobs) + index}",
                recipe=recipe,
                page=notebook.jupyter(),
                shown=shown,
            )
            for index, seed in enumerate(seeds)
        ]
    return jobs


def is_done(job: Job, page_needed: bool) -> bool:
    """Whether the results are there and are what a run would produce; brings their prose up to date."""
    if recipe_of(job.out, job.profile, job.chapter, job.seed) != job.recipe:
        return False
    if not job.page:
        return True
    page = job.final(".ipynb")
    if not page.exists():
        return not page_needed
    try:
        executed = notebook.read(page)
        if notebook.shown_by(executed) != job.shown:
            return False
        current = notebook.finished(notebook.read(job.notebook), executed, job.parameters, job.shown)
    except KdsecError:
        return False  # a damaged page is made again
    if current != executed:
        notebook.write(current, page)
    return True


def widest_gaps_first(jobs: Sequence[Job]) -> list[Job]:
    """``jobs``, which are of one profile and folder, in the order in which they fill the scoreboard.

    First one seed of every chapter, the one with most claims that are not yet run before the others; then
    chapter by chapter the seeds without which no claim is decided; then those that are still undecided. What
    only renews a record that is there comes last, where it closes nothing.

    Raises:
        KdsecError: a record in the folder is damaged.
    """
    from kdsec.report import claims

    boards: dict[str, list[claims.Judgement]] = {}
    coming: Counter[str] = Counter()  # new seeds of a chapter that lie before the one looked at

    def gaps(job: Job) -> tuple[int, int, int]:
        name = job.chapter
        if name not in boards:
            boards[name] = claims.scoreboard(job.profile, [name], job.out)
        verdicts = [each.verdict for each in boards[name]]
        seeds = [each.difference.seeds if each.difference else 0 for each in boards[name]]
        new = not job.final(".json").exists()
        missing = verdicts.count(claims.NOT_RUN) if coming[name] == 0 else 0
        undecidable = sum(known + coming[name] < DECISIVE for known in seeds) if new else 0
        coming[name] += new
        return -missing, -undecidable, -verdicts.count("undecided") if new else 0

    ranks = [gaps(job) for job in jobs]
    return [job for _, job in sorted(zip(ranks, jobs, strict=True), key=lambda pair: pair[0])]


def parse_seeds(text: str) -> list[int]:
    """``0,1,2``, ``0-4`` or both mixed.

    Raises:
        KdsecError: anything else, a range of too many seeds, a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first]
        if not all(end.isascii() and end.isdecimal() and len(end) <= 10 for end in ends):
            raise KdsecError(f"--seeds {text!r} is not a list of whole numbers; write 0,1,2 or 0-4")
        low, high = int(ends[0]), int(ends[-1])
        if not 0 <= high - low < MOST_SEEDS:
            raise KdsecError(
                f"--seeds {text!r}: {part} is no range from low to high of at most {MOST_SEEDS} seeds"
            )
        seeds += range(low, high + 1)
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise KdsecError(f"--seeds {text!r} has {twice[0]} twice; give each seed once")
    return seeds


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Each ``NAME=VALUE``: Python values where they parse as such, else text.

    Raises:
        KdsecError: not of this form, or a name twice.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier() or name in overrides:
            raise KdsecError(f"--set {pair!r} is not NAME=VALUE with a new name; for instance --set epochs=3")
        try:
            overrides[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            overrides[name] = text
    return overrides


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


def _shown(out: pathlib.Path) -> str | None:
    """Fingerprint of what every page shows beside its own run: the recorded runs, and the claims about them.

    None for runs that are themselves among the recorded ones: each would outdate the pages before it.
    """
    from kdsec.fingerprint import source_fingerprint

    folder = recorded_folder()
    if out.resolve() == folder.resolve():  # a clone may be reached through a link
        return None
    return source_fingerprint(PACKAGE / "report" / "claims.toml", *folder.glob("*/*/seed*.csv"))


def _code_behind(chapter: str, cells: list[str]) -> list[pathlib.Path]:
    """The package's files that decide a chapter's results: what its cells and its settings import."""
    own = PACKAGE / "chapters" / f"{chapter.replace('-', '_')}.py"
    files = {own}.union(*(imported_files(code) for code in (*cells, own.read_text(encoding="utf-8"))))
    return sorted(file for file in files if file == own or not _is_bystander(file))


def _is_bystander(file: pathlib.Path) -> bool:
    """Code that takes no part in the results: what drives runs, and the settings of other chapters."""
    return file.name in DRIVERS if file.parent == PACKAGE else file.parent.name == "chapters"


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
    choose("device", device, DEVICES)
    if device == "cuda":
        from kdsec.run import resolve_device

        resolve_device(device)


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
