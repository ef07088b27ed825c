"""The command ``kdsec``: list and run chapters, look after data, print recorded results.

Exit status: 0 all well, 1 a chapter failed, 2 a mistake in what was asked for, 130 interrupted.
What each command needs is imported when it runs, so that ``--help`` and ``list`` answer at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from kdsec import __version__
from kdsec.chapters import CHAPTERS, PROFILES
from kdsec.errors import KdsecError, choose
from kdsec.report.text import text_table

KEYS = ["chapter", "dataset", "arm", "model", "setting", "metric"]


class _Parser(argparse.ArgumentParser):
    """Says every mistake in the one line that all errors of kdsec take."""

    def error(self, message: str) -> NoReturn:
        raise KdsecError(f"{message}; `{self.prog} --help` shows what is allowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Mistakes and failing disks are one line, bugs a traceback."""
    try:
        options = _parser().parse_args(arguments)
        status: int = options.action(options)
        sys.stdout.flush()
        return status
    except KdsecError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as stop:
        kept = f" ({stop})" if str(stop) else ""
        return _complain(f"interrupted{kept}; the same command without --fresh goes on from here", 130)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): no message, and none from Python's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"{where}{error.strerror}; mend that or choose another folder", 2)


def _complain(message: str, status: int) -> int:
    print(f"kdsec: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> _Parser:
    parser = _Parser(
        prog="kdsec",
        description="The security of knowledge distillation, as a book you can run.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kdsec {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, action: Callable[..., int], text: str, to: Any = commands) -> _Parser:
        made: _Parser = to.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(action=action)
        return made

    lister = command("list", _list, "the chapters of the book")
    _add_format(lister, "table", "json")
    _add_run(command("run", _run, "run chapters; what is done already is kept"))

    data = command("data", _data_list, "data sets: which are here, fetch, pack, check")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_format(
        command("list", _data_list, "the data sets, and where they are read from", kinds), "table", "json"
    )
    get = command("get", _data_get, "download data sets", kinds)
    get.add_argument("names", metavar="NAME", nargs="+")
    pack = command("pack", _data_pack, "write DIR/NAME.npz, for machines without internet", kinds)
    pack.add_argument("name", metavar="NAME")
    pack.add_argument("--to", metavar="DIR", required=True)
    check = command("check", _data_check, "read data sets whole; default: all that are here", kinds)
    check.add_argument("names", metavar="NAME", nargs="*")

    results = command("results", _results, "recorded results: mean and spread over seeds, or the rows")
    results.add_argument("chapter", metavar="CHAPTER", nargs="?", help="default: all")
    _add_profile(results)
    _add_format(results, "table", "csv", "json")
    _add_folder(results)

    verify = command("verify", _verify, "what the papers claim, and the verdicts by recorded results")
    verify.add_argument("chapters", metavar="CHAPTER", nargs="*", help="default: all")
    _add_profile(verify)
    _add_format(verify, "table", "json")
    _add_folder(verify)
    return parser


def _add_run(run: _Parser) -> None:
    run.add_argument("chapters", metavar="CHAPTER", nargs="*", help="default: all; see `kdsec list`")
    _add_profile(run)
    run.add_argument("--seeds", metavar="LIST", default="0", help="such as 0,1,2 or 0-4 (default: 0)")
    run.add_argument("--jobs", metavar="N", default="1", help="runs at a time (default: 1)")
    run.add_argument("--device", metavar="DEVICE", default="auto", help="auto, cpu or cuda (default: auto)")
    run.add_argument("--out", metavar="DIR", help="where results go (default: results)")
    run.add_argument("--fresh", action="store_true", help="run and train anew what is done already")
    run.add_argument(
        "--set",
        metavar="NAME=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="change a setting of the profile; needs --out",
    )
    run.add_argument("--notebooks", metavar="DIR", help="the chapters' notebooks (default: the repository's)")
    run.add_argument(
        "--gaps-first",
        action="store_true",
        help="begin with what closes the widest gaps in the scoreboard, as `kdsec verify` shows them",
    )
    run.add_argument(
        "--minutes", metavar="N", help="begin no run after N minutes; those under way go on to their end"
    )


def _add_profile(parser: _Parser) -> None:
    text = f"{', '.join(PROFILES[:-1])} or {PROFILES[-1]} (default: {PROFILES[0]})"
    parser.add_argument("--profile", metavar="PROFILE", default=PROFILES[0], help=text)


def _add_format(parser: _Parser, *formats: str) -> None:
    parser.set_defaults(formats=formats)
    parser.add_argument("--format", metavar="FORMAT", default=formats[0], help=f"{' or '.join(formats)}")


def _add_folder(parser: _Parser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", help="where `kdsec run --out DIR` put them (default: the book's own)"
    )


def _list(options: argparse.Namespace) -> int:
    rows = [
        {"number": each.number, "chapter": each.name, "title": each.title, "notebook": each.notebook}
        for each in CHAPTERS.values()
    ]
    return _show(rows, options)


def _run(options: argparse.Namespace) -> int:
    from kdsec.plan import parse_overrides, parse_seeds

    seeds = parse_seeds(options.seeds)
    overrides = parse_overrides(options.overrides)
    minutes = _minutes(options.minutes)
    if not options.jobs.isdecimal() or int(options.jobs) < 1:
        raise KdsecError(f"--jobs {options.jobs!r} is not a whole number from 1 up")
    for name in options.chapters:  # the checks that need nothing heavy come first: typing errors show at once
        choose("chapter", name, CHAPTERS)
    choose("profile", options.profile, PROFILES)
    from kdsec.runner import run_chapters, short

    outcomes = run_chapters(
        options.chapters,
        options.profile,
        seeds,
        jobs=int(options.jobs),
        device=options.device,
        out=options.out,
        fresh=options.fresh,
        overrides=overrides,
        notebooks=options.notebooks,
        gaps_first=options.gaps_first,
        minutes=minutes,
    )
    rows = [
        {
            "chapter": each.chapter,
            "seed": each.seed,
            "status": each.status,
            "seconds": f"{each.seconds:.1f}",
            "where": short(each.where),
        }
        for each in outcomes
    ]
    print(text_table(rows))
    return 1 if any(each.status == "failed" for each in outcomes) else 0


def _data_list(options: argparse.Namespace) -> int:
    from kdsec import data

    return _show(data.status(), options)


def _data_get(options: argparse.Namespace) -> int:
    from kdsec import data

    for name in options.names:
        choose("dataset", name, data.DATASETS)
    for name in options.names:
        print(f"{name}: {data.fetch(name) or 'bundled, nothing to download'}", flush=True)
    return 0


def _data_pack(options: argparse.Namespace) -> int:
    from kdsec import data

    print(data.pack(options.name, options.to))
    return 0


def _data_check(options: argparse.Namespace) -> int:
    """Every set is checked even when one is damaged, so that one call tells all there is to mend."""
    from kdsec import data

    here = [row["name"] for row in data.status() if not row["where"].startswith("not here")]
    for name in options.names:
        choose("dataset", name, data.DATASETS)
    status = 0
    for name in options.names or here:
        try:
            print(data.check(name), flush=True)
        except KdsecError as error:
            status = _complain(str(error), 2)
    return status


def _results(options: argparse.Namespace) -> int:
    choose("format", options.format, options.formats)
    from kdsec.report import records

    folder = pathlib.Path(options.out) if options.out is not None else records.recorded_folder()
    frame = records.read(folder, options.profile, options.chapter)
    if frame.empty:
        what = f"chapter {options.chapter}" if options.chapter else "any chapter"
        raise KdsecError(
            f"no records of {what} at profile {options.profile} in {folder}; "
            f"`kdsec run` makes them, --out and --profile say where to look"
        )
    if options.format == "csv":
        frame.to_csv(sys.stdout, index=False, float_format="%.9g", lineterminator="\n")
    elif options.format == "json":
        print(frame.to_json(orient="records", indent=1, double_precision=15))
    else:
        rows = []
        for labels, values in frame.groupby(KEYS, sort=False)["value"]:
            spread = f"{values.std():.2g}" if len(values) > 1 else ""
            row = dict(zip(KEYS, labels, strict=True))
            rows.append({**row, "mean": f"{values.mean():.4g}", "sd": spread, "seeds": len(values)})
        print(text_table(rows))
    return 0


def _verify(options: argparse.Namespace) -> int:
    choose("format", options.format, options.formats)
    from kdsec.report import claims

    found = claims.scoreboard(options.profile, options.chapters, options.out)
    if options.out is not None and all(each.verdict == claims.NOT_RUN for each in found):
        raise KdsecError(f"no records at profile {options.profile} in {options.out}; `kdsec run` makes them")
    if options.format == "json":
        return _show([each.facts() for each in found], options)
    for name, paper in claims.papers().items():
        if mine := [each for each in found if each.claim.chapter == name]:
            print(f"{name}: {paper.paper}\n\n{text_table([each.row() for each in mine])}\n")
    verdicts = [each.verdict for each in found]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)))
    return 0


def _show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    as_json = choose("format", options.format, options.formats) == "json"
    print(json.dumps(list(rows), indent=1) if as_json else text_table(rows))
    return 0


def _minutes(text: str | None) -> float:
    try:
        minutes = math.inf if text is None else float(text)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise KdsecError(f"--minutes {text!r} is not a number above 0; for instance --minutes 90")
    return minutes
