"""Build the book: prose and executed chapters into one folder of pages that loads nothing from outside.

``kdsec run --profile quick --seeds 0 --out _build/run`` executes the chapters; this script never does.
It stages everything in ``_build/book-src``, runs jupyter-book with warnings as errors in a temporary folder,
looks for errors in what came out, and only then puts it in place of the pages that are there.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
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

import address
import card
import diagrams
import edition
import ledger
import nbformat
import sync
import terms
import yaml

from kdsec.config import CHAPTERS, PROFILES, Chapter
from kdsec.errors import KdsecError
from kdsec.report import quote, records, scoreboard, tables
from kdsec.report.interactive import STILL
from kdsec.report.provenance import LIBRARIES
from kdsec.report.text import markdown_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROSE = ("*.md", "*.bib", "_static/*", "_static/images/*")
HIDDEN = {"colab", "parameters", "injected-parameters"}
TOOLS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")
STAMP = ".built-from"
# A name in a line of text: browsers would break it at its hyphens. Longer ones may, or a phone is too narrow.
NAME = re.compile(r'<span class="pre">([^<>]{1,24})</span>')
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
    shutil.copy(ROOT / "_toc.yml", source)
    settings = yaml.safe_dump(address.linked(address.config()), sort_keys=False, allow_unicode=True)
    (source / "_config.yml").write_text(settings, encoding="utf-8")
    for pattern in PROSE:
        for path in filter(pathlib.Path.is_file, (ROOT / "book").glob(pattern)):
            target = source / path.relative_to(ROOT / "book")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    # Worked examples that are no chapters are shown as they are stored.
    shutil.copytree(ROOT / "notebooks" / "more", source / "notebooks" / "more")
    known, meaning = terms.terms(), terms.meanings()
    landing = {"citation": citation(), "run button": run_button()}
    drawn, cards = diagrams.drawings(results), []
    numbers = quote.Source(scoreboard.read(results), results)
    inside = dataclasses.replace(numbers, row=f"../{quote.ROW}")
    site = address.pages()
    outside = dataclasses.replace(numbers, plain=True, row=f"{site}{quote.ROW}" if site else "")
    prepared = {name: prepare(executed(run, chapter), chapter) for name, chapter in CHAPTERS.items()}
    for name, chapter in CHAPTERS.items():
        notebook = filled(prepared[name], inside)
        minutes = f"read {reading(notebook)}, run {running(run, chapter)}"
        cards.append(front_card(chapter, notebook, drawn, minutes))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = diagrams.inline(cell.source, drawn)
        notebook = terms.with_meanings(terms.with_index(notebook, chapter, known), meaning)
        nbformat.write(notebook, source / "notebooks" / chapter.notebook)
    landing["cards"] = "\n".join(['<div class="cards">', *cards, "</div>"])
    for_colab(
        {name: filled(each, outside) for name, each in prepared.items()},
        source / "_extra" / address.COLAB_BRANCH,
    )
    fill(source / "index.md", landing)
    fill(source / "run-times.md", {"runs": run_times(run, results), "costs": ledger.costs(results)})
    fill(source / "how-to-run.md", {"schedules": schedules(results), "pieces": ledger.pieces(results)})
    boards = numbers.boards
    counts = "\n\n".join(filter(None, [scoreboard.counts(boards), scoreboard.old(boards)]))
    parts = {"strip": scoreboard.strip(boards), "counts": counts, "scoreboard": scoreboard.page(boards)}
    fill(source / "scoreboard.md", parts)
    for page in source.glob("*.md"):
        shown = dataclasses.replace(numbers, most_q=quote.FRONT) if page.name == "index.md" else numbers
        text = diagrams.inline(quote.fill(page.read_text(encoding="utf-8"), shown), drawn)
        page.write_text(text, encoding="utf-8")
    card.draw(results, source / "_static" / "card.png")
    # One bundle with every TeX extension. In _extra, because from _static it would be loaded twice.
    scripts = source / "_extra" / "_static" / "mathjax"
    scripts.mkdir(parents=True)
    shutil.copy(mathjax() / "tex-svg-full.js", scripts)


def filled(notebook: Any, numbers: quote.Source) -> Any:
    """A copy of ``notebook`` with what the marks in its text ask for."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = quote.fill(cell.source, numbers)
    return notebook


def for_colab(prepared: dict[str, Any], folder: pathlib.Path) -> None:
    """Write the Colab edition of the ``prepared`` notebooks; it is published with the pages.

    Raises:
        BuildError: a cell would show markup that only the book knows.
    """
    made = edition.Edition.of(address.config(), prepared)
    folder.mkdir(parents=True)
    for name, notebook in prepared.items():
        chapter = made.chapter(notebook, CHAPTERS[name])
        for cell in chapter.cells:
            if cell.cell_type == "markdown" and (found := edition.raw(cell.source)):
                raise BuildError(
                    f"Colab edition of {name}: {found[0]!r} is left; give it a rule in book/edition.py"
                )
        nbformat.write(chapter, folder / CHAPTERS[name].notebook)


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


def front_card(chapter: Chapter, notebook: Any, drawn: dict[str, diagrams.Drawing], minutes: str) -> str:
    """A chapter on the front page: picture, question, what was found, minutes."""
    title = html.escape(sync.question(notebook) or chapter.title)
    page = chapter.notebook.replace(".ipynb", ".html")
    return (
        f'<a class="card" href="notebooks/{page}">{drawn[f"card-{chapter.name}"].svg().replace(chr(10), "")}'
        f'<span class="card-title">{chapter.number}. {title}</span>'
        f'<span class="card-answer"><!-- answer {chapter.name} --></span>'
        f'<span class="card-minutes">{minutes} min</span></a>'
    )


def run_button() -> str:
    """The front page's second button: Colab, or how to run it where the repository has no address."""
    url = address.colab(next(iter(CHAPTERS.values())).notebook)
    kind, target, text = ("link", url, "Run it in Colab") if url else ("ref", "how-to-run", "Run it")
    lines = [f"```{{button-{kind}}} {target}", *[":ref-type: doc"] * (not url)]
    return "\n".join([*lines, ":color: primary", ":outline:", text, "```"])


def running(run: pathlib.Path, chapter: Chapter) -> int:
    """Minutes that the run behind the pages took, with what its cache saved."""
    for each in records.runs(run, "quick", chapter.name):
        if each["seed"] == 0:
            return max(1, round(quote.minutes(each)))
    raise BuildError(f"chapter {chapter.name} has an executed notebook and no record of seed 0 in {run}")


def citation() -> str:
    """The book as a BibTeX entry, from ``CITATION.cff``."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join("{" + each["name"] + "}" for each in about["authors"])
    fields = {
        "title": about["title"],
        "author": authors,
        "year": address.config()["copyright"],
        "version": about["version"],
        "url": address.repository(),
    }
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items() if value)
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
        groups.setdefault(_circumstances(run), []).append(run)
    times = [("chapter", "profile", "seeds", "minutes a seed", "on", "date")]
    made_by = [("chapter", "profile", "code", "python", *LIBRARIES)]
    for (chapter, profile, device, code, *versions), members in groups.items():
        seeds = ", ".join(str(run["seed"]) for run in members)
        minutes = [quote.minutes(run) for run in members]
        span = f"{min(minutes):.1f} to {max(minutes):.1f}" if len(minutes) > 1 else f"{minutes[0]:.1f}"
        times.append((chapter, profile, seeds, span, device, max(run["date"][:10] for run in members)))
        made_by.append((chapter, profile, code, *versions))
    return f"{markdown_table(times)}\n\n{markdown_table(made_by)}" if runs else "There is none."


def _circumstances(run: dict[str, Any]) -> tuple[str, ...]:
    """Chapter, profile, device, code and versions of a recorded run."""
    try:
        code = (run["commit"] or "unknown")[:10] + (", changed" if run["dirty"] else "")
        versions = [run["versions"][name] for name in ("python", *LIBRARIES)]
    except (KeyError, TypeError) as error:
        which = f"{run['profile']} / {run['chapter']} / seed {run['seed']}"
        raise BuildError(f"the json of record {which} does not say where it was made: {error}") from None
    return (run["chapter"], run["profile"], ledger.device(run), code, *versions)


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
    return markdown_table(rows)


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
    """Take out the one address that the theme puts into every page, and look for marks of failure.

    A short name in a line of text is marked, so that it is not broken.

    What the theme offers to download or to open in Colab is the source of a chapter: offer the Colab edition.
    """
    text = NAME.sub(r'<span class="pre whole">\1</span>', THEBE.sub("", page.read_text(encoding="utf-8")))
    for chapter in CHAPTERS.values():
        text = re.sub(
            rf"_sources/notebooks/{chapter.notebook}", f"{address.COLAB_BRANCH}/{chapter.notebook}", text
        )
        source = rf"{address.COLAB}/[^\"']*/notebooks/{chapter.notebook}"
        text = re.sub(source, address.colab(chapter.notebook), text)
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
