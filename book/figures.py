"""Draw the book's figures of recorded rows again, without training anything.

``python book/figures.py [CHAPTER ...]`` writes the figures that ``FIGURES`` of a chapter's module in
``kdsec/report/panels`` lists: a file name, and a function of the recordings. Figures that show a network at
work are drawn by the notebooks alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pathlib
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt

from kdsec.config import CHAPTERS, Chapter
from kdsec.errors import KdsecError, atomic_write, check_choice
from kdsec.report import plots
from kdsec.report.records import recordings

FORMATS = ("png", "svg", "pdf")


def draw(chapter: Chapter, out: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """Draw a chapter's figures into ``out``; returns their files, none for a chapter without panels.

    Raises:
        KdsecError: the chapter has no records.
    """
    module = f"kdsec.report.panels.{chapter.name.replace('-', '_')}"
    if importlib.util.find_spec(module) is None:
        return []
    recorded = recordings(chapter.name)
    if not recorded:
        raise KdsecError(
            f"no records of {chapter.name}; `kdsec run {chapter.name} --profile quick` makes some"
        )
    files = []
    for name, panel in importlib.import_module(module).FIGURES.items():
        files.append(out / f"{chapter.number:02d}-{name}.{kind}")
        with atomic_write(files[-1]) as part:
            panel(recorded).figure.savefig(part, bbox_inches="tight")  # as notebooks show it
        plt.close("all")
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the figures of the committed records.")
    parser.add_argument("chapters", nargs="*", help="by name; all if none is given")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("_build/figures"))
    parser.add_argument("--format", choices=FORMATS, default="png")
    arguments = parser.parse_args()
    mpl.use("agg")
    plots.use_style()
    try:
        for name in arguments.chapters:
            check_choice("chapter", name, CHAPTERS)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in arguments.chapters or CHAPTERS:
            print(f"{name}: {len(draw(CHAPTERS[name], arguments.out, arguments.format))} figures")
    except KdsecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write to {arguments.out}: {error.strerror}", file=sys.stderr)
        return 1
    print(arguments.out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
