"""What a run of a chapter is, whether it is done, and in which order runs fill the scoreboard.

A run is done when its record (csv and json) is whole and has today's recipe: the fingerprint of the chapter's
settings, the notebook's code cells and the package's code behind them. Pages take changed prose over without
running. In ``results/`` a record suffices, as in a clone; in a folder that the user names, the page must be
there too. Pages also show the book's recorded runs, and are made again when these or their claims change.
"""

from __future__ import annotations

import ast
import collections
import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsec import notebook
from kdsec.config import CHAPTERS, PROFILES, profiles, settings
from kdsec.errors import KdsecError, check_choice, check_path
from kdsec.report.provenance import PACKAGE, repository
from kdsec.report.records import location, recipe_of, recorded_folder

RESULTS = "results"
DEVICES = ("auto", "cpu", "cuda")
DECISIVE = 3  # fewer seeds decide no claim


@dataclass(frozen=True)
class RunSpec:
    """One chapter at one profile and seed. Paths are absolute.

    Attributes:
        recipe: fingerprint of all that decides the results.
        shown: fingerprint of what the page shows beside its own run; None for the recorded runs themselves.
    """

    chapter: str
    profile: str
    seed: int
    device: str
    overrides: dict[str, Any]
    notebook: pathlib.Path
    out: pathlib.Path
    recipe: str
    shown: str | None = None

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.chapter} seed {self.seed}"

    @property
    def staging(self) -> pathlib.Path:
        """The folder it runs in, on the disk of its final place, so that moving there is atomic."""
        return self.final("").with_name(f".seed{self.seed}.part")

    @property
    def parameters(self) -> dict[str, Any]:
        """What its notebook is given; the kernel's working directory is the staging folder."""
        given = {"profile": self.profile, "seed": self.seed, "device": self.device}
        return {**given, "out": ".", "overrides": self.overrides}

    def final(self, suffix: str) -> pathlib.Path:
        """Where a file of this run belongs: suffix ``.csv``, ``.json``, ``.ipynb``, ``.failed.ipynb``."""
        return location(self.out, self.profile, self.chapter, self.seed, suffix)


def plan(
    chapters: Sequence[str],
    profile: str,
    seeds: Sequence[int],
    *,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    notebooks: str | os.PathLike[str] | None = None,
) -> list[RunSpec]:
    """Check all that can be checked before anything runs, and list what was asked for, done or not.

    Arguments and errors are those of ``run_chapters``.
    """
    check_choice("profile", profile, PROFILES)
    with_profile = [name for name in CHAPTERS if profile in profiles(name)]
    names = list(dict.fromkeys(check_choice("chapter", name, CHAPTERS) for name in chapters or with_profile))
    _check_seeds(seeds)
    if check_choice("device", device, DEVICES) == "cuda":
        from kdsec.run import resolve_device

        resolve_device(device)
    if overrides and out is None:
        raise KdsecError(
            f"changed settings ({', '.join(overrides)}) give other records than profile {profile}; "
            f"name another folder for them with --out"
        )
    for name, value in (overrides or {}).items():
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise KdsecError(f"setting {name}={value!r} cannot be handed to a notebook; give a plain value")
    folder = _notebooks(None if notebooks is None else check_path("notebooks", notebooks))
    if not all(importlib.util.find_spec(name) for name in ("ipykernel", "nbformat", "papermill")):
        raise KdsecError(f"to run chapters kdsec {notebook.INSTALL}")
    place = (pathlib.Path(RESULTS) if out is None else check_path("out", out)).absolute()
    shown = _shown(place)
    specs = []
    for name in names:
        path, changed = (folder / CHAPTERS[name].notebook).absolute(), dict(overrides or {})
        recipe = _recipe(name, profile, changed, path)
        specs += [RunSpec(name, profile, seed, device, changed, path, place, recipe, shown) for seed in seeds]
    return specs


def checkout(folder: pathlib.Path) -> pathlib.Path | None:
    """The checkout of kdsec that runs use: the package's own, else ``folder`` if it has the installed code.

    Raises:
        KdsecError: ``folder`` is a checkout of another version than the installed package.
    """
    if repository() or not all((folder / name).exists() for name in ("pyproject.toml", "kdsec/runner.py")):
        return repository()
    if _code(folder / "kdsec") != _code(PACKAGE):
        raise KdsecError(
            f"the installed kdsec ({PACKAGE}) has other code than the clone {folder}; "
            "install the clone with pip install -e . and run again"
        )
    return folder


def _code(package: pathlib.Path) -> dict[str, bytes]:
    files = [each for each in package.rglob("*") if each.suffix in (".py", ".toml")]
    return {each.relative_to(package).as_posix(): each.read_bytes() for each in files}


def _notebooks(given: pathlib.Path | None = None) -> pathlib.Path:
    root = checkout(pathlib.Path.cwd() if given is None else given.absolute().parent)
    if given is not None:
        return given
    if root is None or not (root / "notebooks").is_dir():
        raise KdsecError(
            "the notebooks are in the repository, not in the installed package; "
            "run kdsec in a clone, or name their folder with --notebooks"
        )
    return root / "notebooks"


def _recorded(spec: RunSpec) -> bool:
    """Whether the record is there and has today's recipe."""
    return recipe_of(spec.out, spec.profile, spec.chapter, spec.seed) == spec.recipe


def is_done(spec: RunSpec, page_needed: bool) -> bool:
    """Whether the results are there and are what a run would produce; brings their prose up to date."""
    if not _recorded(spec):
        return False
    page = spec.final(".ipynb")
    if not page.exists():
        return not page_needed
    try:
        executed = notebook.read(page)
        if executed.metadata.get("kdsec", {}).get("shown") != spec.shown:
            return False
        current = notebook.finished(notebook.read(spec.notebook), executed, spec.parameters, spec.shown)
    except KdsecError:
        return False  # a damaged page is made again
    if current != executed:
        notebook.write(current, page)
    return True


def widest_gaps_first(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """``specs``, which are of one profile and folder, in the order in which they fill the scoreboard.

    First one seed of every chapter, those with most claims not yet run before the others; then chapter by
    chapter the seeds without which no claim is decided; then chapters with undecided claims. Runs that only
    renew a record come last.

    Raises:
        KdsecError: a record in the folder is damaged.
    """
    from kdsec.report import verdicts as rule

    found = rule.scoreboard(specs[0].profile, folder=specs[0].out) if specs else []
    asked = [each for each in found if each.claim.asked(each.profile)]
    boards = {spec.chapter: [each for each in asked if each.claim.chapter == spec.chapter] for spec in specs}
    coming: collections.Counter[str] = collections.Counter()  # new seeds of a chapter ranked so far

    def gaps(spec: RunSpec) -> tuple[int, int, int, bool]:
        name, board = spec.chapter, boards[spec.chapter]
        verdicts = [result.verdict for result in board]
        new = not spec.final(".json").exists()
        missing = verdicts.count(rule.NOT_RUN) if coming[name] == 0 else 0
        known = [len(result.values) for result in board]
        undecidable = sum(seeds + coming[name] < DECISIVE for seeds in known) if new else 0
        coming[name] += new
        return -missing, -undecidable, -verdicts.count(rule.UNDECIDED) if new else 0, not new

    ranks = [gaps(spec) for spec in specs]
    return [spec for _, spec in sorted(zip(ranks, specs, strict=True), key=lambda pair: pair[0])]


def agenda(specs: Sequence[RunSpec], *, gaps_first: bool = False) -> list[dict[str, Any]]:
    """What would run, in order, then what is done: a row for each, with what its chapter's claims still lack.

    Args:
        specs: of one profile and folder.
        gaps_first: order by ``widest_gaps_first``.
    """
    from kdsec.report import verdicts as rule

    if not specs:
        return []
    board = rule.scoreboard(
        specs[0].profile, list(dict.fromkeys(spec.chapter for spec in specs)), specs[0].out
    )
    lacking = {
        kind: collections.Counter(
            each.claim.chapter for each in board if each.verdict == kind and each.claim.asked(each.profile)
        )
        for kind in (rule.NOT_RUN, rule.UNDECIDED)
    }
    done = [spec for spec in specs if _recorded(spec)]
    todo = [spec for spec in specs if spec not in done]
    return [
        {
            "chapter": spec.chapter,
            "seed": spec.seed,
            "status": "done" if spec in done else "to run",
            **{f"claims {kind}": count[spec.chapter] for kind, count in lacking.items()},
        }
        for spec in [*(widest_gaps_first(todo) if gaps_first else todo), *done]
    ]


def _recipe(chapter: str, profile: str, overrides: Mapping[str, Any], path: pathlib.Path) -> str:
    """Fingerprint of all that decides a chapter's results; its notebook is checked."""
    from kdsec.fingerprint import fingerprint, source_fingerprint

    chosen = settings(chapter, profile, overrides)
    source = notebook.read(path)
    notebook.check_parameters(source, path)
    cells = notebook.code(source)
    return fingerprint([chosen, cells, source_fingerprint(*_code_behind(chapter, cells))])


def _code_behind(chapter: str, cells: list[str]) -> list[pathlib.Path]:
    """The package's files that decide a chapter's results: what its cells and its settings import."""
    from kdsec.fingerprint import source_dependencies

    own = PACKAGE / "config" / f"{chapter.replace('-', '_')}.py"
    files = set[pathlib.Path]().union(*map(source_dependencies, [*cells, own.read_text(encoding="utf-8")]))
    return [own, *sorted(file for file in files if file.parent != own.parent)]  # not other chapters' settings


def _shown(out: pathlib.Path) -> str | None:
    """Fingerprint of what a page shows beside its own run: recorded runs, claims about them, code that draws.

    None for runs that are themselves among the recorded ones: each would outdate the pages before it.
    """
    from kdsec.fingerprint import DRAWING, source_fingerprint

    folder = recorded_folder()
    if os.path.realpath(out) == os.path.realpath(folder):  # a clone may be reached through a link
        return None
    drawing = [path for name in DRAWING if (path := PACKAGE / name).exists()]
    papers = (PACKAGE / "report/papers").glob("*.toml")
    return source_fingerprint(*papers, *drawing, *folder.glob("*/*/seed*.csv"))


def _check_seeds(seeds: Sequence[int]) -> None:
    for place, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise KdsecError(f"seed {seed!r} is not a whole number from 0 to 2^32 - 1")
        if seed in seeds[:place]:
            raise KdsecError(f"seed {seed} is given twice; give each seed once")
    if not seeds:
        raise KdsecError("no seed given; give at least one, e.g. 0")
