"""Build the book: prose and executed chapters into one folder of pages that loads nothing from outside.

``kdsec run --profile quick --seeds 0 --out _build/run`` executes the chapters; this script never does.
It stages everything in ``_build/book-src``, runs jupyter-book with warnings as errors in a temporary folder,
looks for errors in what came out, and only then puts it in place of the pages that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import card
import nbformat
import terms
import yaml

from kdsec.chapters import CHAPTERS, PROFILES, Chapter
from kdsec.errors import KdsecError
from kdsec.report import quote, records, scoreboard, tables
from kdsec.report.interactive import STILL
from kdsec.report.provenance import LIBRARIES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROSE = ("*.md", "*.bib", "_static/*")
HIDDEN = {"colab", "parameters", "injected-parameters"}
TOOLS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")
STAMP = ".built-from"
THEBE = re.compile(r"<script>\s*const THEBE_JS_URL\s*=.*?</script>", re.DOTALL)
# A tag that loads something from another host, and the marks that Sphinx and Python leave on a failure.
OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|link(?=[^>]*\brel=["']?(?:stylesheet|preload)))
    \b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']*""",
    re.VERBOSE,
)
BROKEN = re.compile(r"Traceback \(most recent call last\)|class=\"(?:problematic|system-message)")


class BuildError(Exception):
    """What stopped the build, in one line."""


def stage(run: pathlib.Path, results: pathlib.Path, source: pathlib.Path) -> None:
    """Fill ``source`` with all that the book is made of.

    Raises:
        BuildError: a chapter has not been executed, has failed, or shows a figure without alternative text.
    """
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, source / name)
    for pattern in PROSE:
        for path in (ROOT / "book").glob(pattern):
            target = source / path.relative_to(ROOT / "book")
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    (source / "notebooks").mkdir()
    known = terms.terms()
    landing = {"citation": citation()}
    for chapter in CHAPTERS.values():
        notebook = prepare(executed(run, chapter), chapter)
        landing[f"reading {chapter.name}"] = f"{reading(notebook)}\u00a0min"
        landing[f"running {chapter.name}"] = running(run, chapter)
        notebook = terms.with_index(notebook, chapter, known)
        nbformat.write(notebook, source / "notebooks" / chapter.notebook)
    fill(source / "index.md", landing)
    fill(source / "run-times.md", {"runs": run_times(run, results)})
    fill(source / "how-to-run.md", {"schedules": schedules(results)})
    numbers = quote.Source(scoreboard.read(results), results)
    board = {"counts": scoreboard.counts(numbers.boards), "scoreboard": scoreboard.page(numbers.boards)}
    fill(source / "scoreboard.md", board)
    for page in source.glob("*.md"):
        page.write_text(quote.fill(page.read_text(encoding="utf-8"), numbers), encoding="utf-8")
    card.draw(results, source / "_static" / "card.png")
    # One bundle with every TeX extension. In _extra, because from _static it would be loaded twice.
    scripts = source / "_extra" / "_static" / "mathjax"
    scripts.mkdir(parents=True)
    shutil.copy(mathjax() / "tex-svg-full.js", scripts)


def fill(page: pathlib.Path, parts: dict[str, str]) -> None:
    """Put computed text where a page has its name in a comment."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    page.write_text(text, encoding="utf-8")


def mathjax() -> pathlib.Path:
    """The folder with MathJax's bundles, from the package that carries them."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise BuildError("package sphinx-mathjax-offline is missing; run make setup")
    return pathlib.Path(spec.origin).parent / "static" / "mathjax"


def executed(run: pathlib.Path, chapter: Chapter) -> Any:
    """The chapter's notebook as ``kdsec run`` left it."""
    path = run / "quick" / chapter.name / "seed0.ipynb"
    again = f"run: kdsec run {chapter.name} --profile quick --seeds 0 --out {run}"
    if not path.is_file():
        raise BuildError(f"chapter {chapter.name} has no executed notebook at {path}; {again}")
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, OSError) as error:
        raise BuildError(f"{path} is not a notebook ({type(error).__name__}); {again} --fresh") from error
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        raise BuildError(f"chapter {chapter.name} failed: {path} ends in an error; {again} --fresh")
    if not any(cell.execution_count for cell in code):
        raise BuildError(f"chapter {chapter.name} was not executed: {path} has no outputs; {again} --fresh")
    return notebook


def prepare(notebook: Any, chapter: Chapter) -> Any:
    """Hide the cells that are machinery; every figure must say in words what it shows, and is numbered."""
    numbered = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        tags = set(cell.metadata.get("tags", []))
        if tags & HIDDEN:
            cell.metadata["tags"] = sorted(tags | {"remove-cell"})
            continue
        figures = sum(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))
        where = f"{chapter.notebook}, cell {index}"
        if not figures:
            continue
        for what, key, name in (("alternative text", "image", "alt"), ("caption", "figure", "caption")):
            if not cell.metadata.get("mystnb", {}).get(key, {}).get(name):
                raise BuildError(f"{where}: a figure has no {what}; give it in mystnb.{key}.{name}")
        if figures > 1:  # they would share one alternative text
            raise BuildError(f"{where}: {figures} figures in one cell; give each a cell of its own")
        for output in cell.outputs:
            describe(output, cell.metadata["mystnb"]["image"]["alt"])
        # A name is what Sphinx numbers figures by, and an address to link to.
        numbered += 1
        cell.metadata["mystnb"]["figure"].setdefault("name", f"{chapter.name}-figure-{numbered}")
    notebook.metadata.pop("widgets", None)  # would fetch its viewer from outside
    return notebook


def describe(output: Any, alt: str) -> None:
    """Give the still picture inside a figure that answers the alternative text of its cell."""
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = data["text/html"].replace(f'alt="{STILL}"', f'alt="{html.escape(alt)}"')


def reading(notebook: Any) -> int:
    """Minutes that the prose takes at 200 words a minute, to the nearest five."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    words = len(re.findall(r"\w{2,}", re.sub(r"\$[^$]*\$", "", " ".join(prose))))
    return max(5, 5 * round(words / 1000))


def running(run: pathlib.Path, chapter: Chapter) -> str:
    """Minutes that the run behind the pages took, with what its cache saved."""
    (made,) = (each for each in records.runs(run, "quick", chapter.name) if each["seed"] == 0)
    return f"{max(1, round(quote.minutes(made)))}\u00a0min"


def citation() -> str:
    """The book as a BibTeX entry, from ``CITATION.cff``."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    authors = " and ".join("{" + each["name"] + "}" for each in about["authors"])
    fields = {
        "title": about["title"],
        "author": authors,
        "year": config["copyright"],
        "version": about["version"],
        "url": config["repository"]["url"],
    }
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return f"@software{{kdsec,\n{lines},\n}}"


def run_times(run: pathlib.Path, results: pathlib.Path) -> str:
    """Tables in Markdown: the run that these pages show, and the recorded ones."""
    shown = records.runs(run, "quick")
    recorded = [found for profile in PROFILES for found in records.runs(results, profile)]
    text = ["## The run behind these pages", "", _tables(shown)]
    if recorded:
        text += ["", "## Recorded runs", "", "They come with the source, in `results/`.", ""]
        text += [_tables(recorded)]
    return "\n".join(text)


def _tables(runs: list[dict[str, Any]]) -> str:
    """Two tables, one row for all seeds that ran with the same code, versions and machine."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        machine = run["machine"]
        device = machine["gpu"] or f"{machine['cpu']}, threads: {machine['threads']}"
        code = (run["commit"] or "unknown")[:10] + (", changed" if run["dirty"] else "")
        versions = [run["versions"][name] for name in ("python", *LIBRARIES)]
        groups.setdefault((run["chapter"], run["profile"], device, code, *versions), []).append(run)
    times = [("chapter", "profile", "seeds", "minutes a seed", "on", "date")]
    made_by = [("chapter", "profile", "code", "python", *LIBRARIES)]
    for (chapter, profile, device, code, *versions), members in groups.items():
        seeds = ", ".join(str(run["seed"]) for run in members)
        minutes = [quote.minutes(run) for run in members]
        span = f"{min(minutes):.1f} to {max(minutes):.1f}" if len(minutes) > 1 else f"{minutes[0]:.1f}"
        times.append((chapter, profile, seeds, span, device, max(run["date"][:10] for run in members)))
        made_by.append((chapter, profile, code, *versions))
    return _table(times) + "\n\n" + _table(made_by) if runs else "There is none."


def schedules(results: pathlib.Path) -> str:
    """A table in Markdown: the sparse teacher's two schedules, as ``python -m benchmarks`` measured them."""
    path = results / "schedules.json"
    if not path.exists():
        return "There is no measurement."
    rows: list[tuple[Any, ...]] = [
        ("network", "images", "seeds", "papers' schedule", "short schedule", "difference in points")
    ]
    for found in json.loads(path.read_text(encoding="utf-8"))["results"]:
        full, fast = found["full_accuracy"], found["fast_accuracy"]
        mean, low, high = (None if each is None else f"{100 * each:+.1f}" for each in found["difference"])
        gap = mean if low is None else f"{mean} ({low} to {high})"
        shares = [f"{100 * statistics.mean(each):.1f} %" for each in (full, fast)]
        images = f"{found['images']:,} of {tables.in_print(found['dataset'])}"
        rows.append((f"`{found['net']}`", images, len(full), *shares, gap))
    return _table(rows)


def _table(rows: list[tuple[Any, ...]]) -> str:
    lines = [" | ".join(str(cell).replace("|", "/") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join(["---"] * len(rows[0])), *lines[1:]])


def digest(source: pathlib.Path) -> str:
    """Changes whenever a build of ``source`` could come out differently."""
    total = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    total.update(json.dumps([(name, importlib.metadata.version(name)) for name in TOOLS]).encode())
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(source)} {path.stat().st_size} ".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def build(source: pathlib.Path, out: pathlib.Path) -> bool:
    """Build ``source`` into ``out``; say whether there was anything to do.

    Raises:
        BuildError: jupyter-book warned or failed, or its pages show an error. ``out`` stays as it was.
    """
    stamp = digest(source)
    if (out / STAMP).is_file() and (out / STAMP).read_text() == stamp:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="book-", dir=out.parent) as folder:
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
        command += [str(source), "--path-output", folder, "-W", "--keep-going", "-n", "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            log = done.stdout + done.stderr
            notes = [line for line in log.splitlines() if re.search(r"WARNING|ERROR|Error", line)]
            print("\n".join(notes or log.splitlines()[-30:]), file=sys.stderr)
            raise BuildError("jupyter-book did not accept the pages; its warnings are above")
        pages = pathlib.Path(folder) / "_build" / "html"
        for page in pages.rglob("*.html"):
            finish(page, pages)
        (pages / STAMP).write_text(stamp)
        old = pathlib.Path(folder) / "old"
        if out.exists():
            out.rename(old)
        pages.rename(out)
    return True


def finish(page: pathlib.Path, pages: pathlib.Path) -> None:
    """Take out the one address that the theme puts into every page, and look for marks of failure."""
    text = THEBE.sub("", page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    for what, pattern in (("an error", BROKEN), ("something from another host", OUTSIDE)):
        found = pattern.search(text)
        if found:
            raise BuildError(f"page {page.relative_to(pages)} shows or loads {what}: {found.group()[:120]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the book from executed chapters.")
    parser.add_argument("--run", type=pathlib.Path, default=pathlib.Path("_build/run"))
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "results")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("_build/html"))
    arguments = parser.parse_args()
    source = arguments.out.parent / "book-src"
    try:
        stage(arguments.run, arguments.results, source)
        fresh = build(source, arguments.out)
    except (BuildError, KdsecError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("the book is built" if fresh else "the book is up to date", "- open it at:")
    print(arguments.out.resolve() / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
