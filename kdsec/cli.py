"""The command ``kdsec``: list and run chapters, audit a model, look after data, print recorded results.

Exit status: 0 success, 1 a chapter failed, 2 a mistake in what was asked for, 3 the time of ``run --minutes``
is over and something is left to run, 130 interrupted.
Each command imports what it needs when it runs, so that ``--help`` and ``list`` answer at once.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from kdsec import __version__
from kdsec.audit.command import add_options
from kdsec.audit.command import run as audit
from kdsec.config import CHAPTERS, PROFILES
from kdsec.errors import KdsecError, check_choice, disk_is_full
from kdsec.report.text import text_table

MOST_SEEDS = 1000
KEYS = ["chapter", "dataset", "arm", "model", "setting", "metric"]


class _Parser(argparse.ArgumentParser):
    """Says every mistake in the one line that all errors of kdsec take."""

    def error(self, message: str) -> NoReturn:
        raise KdsecError(f"{message}; `{self.prog} --help` shows what is allowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Mistakes and failing disks are one line, bugs a traceback."""
    warnings.formatwarning = lambda message, *_, **__: f"kdsec: warning: {message}\n"
    if sys.stderr is None:  # closed by the caller
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that this terminal cannot show
    try:
        if sys.stdout is None:
            raise KdsecError("standard output is closed; send it to a file or to /dev/null")
        given = list(sys.argv[1:] if arguments is None else arguments)
        _check_not_empty(given)
        options = _parser().parse_args(given)
        status: int = options.action(options)
        sys.stdout.flush()
        return status
    except KdsecError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as stop:
        kept = f" ({stop})" if str(stop) else ""
        asked = sys.argv if arguments is None else arguments
        same = "the same command without --fresh" if "--fresh" in asked else "the same command"
        return _complain(f"interrupted{kept}; {same} goes on from here", 130)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        if error.filename is None:
            # Output failed. Python would flush it again at exit and complain about that.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return 0  # the reader of our output has left (`| head`)
        advice = "choose another folder, or allow this one"
        if disk_is_full(error):
            advice = "free some space or choose another folder"
        return _complain(f"{error.filename or 'output'}: {error.strerror}; {advice}", 2)
    except RuntimeError as error:
        if "home directory" not in str(error):  # pathlib's, of a user whom the system does not know
            raise
        return _complain(
            "this user has no home folder; set HOME, or KDSEC_CACHE and KDSEC_DATA, to a folder", 2
        )


def parse_seeds(text: str) -> list[int]:
    """``0,1,2``, ``0-4`` or both mixed.

    Raises:
        KdsecError: anything else, or a range of too many seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first]
        if not all(end.isascii() and end.isdecimal() and len(end) <= 10 for end in ends):
            raise KdsecError(f"--seeds {text!r} is not a list of whole numbers; write 0,1,2 or 0-4")
        low, high = int(ends[0]), int(ends[-1])
        if not 0 <= high - low < MOST_SEEDS:
            wanted = f"a range from low to high of at most {MOST_SEEDS} seeds"
            raise KdsecError(f"--seeds {text!r}: {part} is not {wanted}")
        seeds += range(low, high + 1)
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
            raise KdsecError(f"--set {pair!r} is not NAME=VALUE with a new name, such as validation=0.2")
        try:
            overrides[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            overrides[name] = text
    return overrides


def _complain(message: str, status: int) -> int:
    print(f"kdsec: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _check_not_empty(arguments: Sequence[str]) -> None:
    """Refuse an argument without text, as an unset variable of the shell gives: none means anything."""
    for before, given in zip(["", *arguments], arguments, strict=False):
        option, value = before, given
        if match := re.fullmatch(r"(--[\w-]+)=(.*)", given, re.DOTALL):
            option, value = match.groups()
        if not value.strip():
            where = f"{option}: " if option.startswith("-") else ""
            raise KdsecError(f"{where}an argument is empty; is a variable of the shell unset?")


def _parser() -> _Parser:
    parser = _Parser(
        prog="kdsec",
        description="The security of knowledge distillation, as a book you can run.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kdsec {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, action: Callable[..., int], text: str, to: Any = commands) -> _Parser:
        parser: _Parser = to.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.set_defaults(action=action)
        return parser

    lister = command("list", _list, "list the chapters of the book")
    _add_format(lister, "table", "json")
    _add_run(command("run", _run, "run chapters; finished runs are kept"))

    add_options(command("audit", audit, "find out what serving a model of your own gives away"))

    data = command("data", _data_list, "list, download, pack and check data sets")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_format(
        command("list", _data_list, "list the data sets and where they are read from", kinds), "table", "json"
    )
    get = command("get", _data_get, "download data sets", kinds)
    get.add_argument("names", metavar="NAME", nargs="+")
    pack = command("pack", _data_pack, "write DIR/NAME.npz, for machines without internet", kinds)
    pack.add_argument("name", metavar="NAME")
    pack.add_argument("--to", metavar="DIR", required=True)
    pack.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    check = command("check", _data_check, "read whole data sets (default: all that are present)", kinds)
    check.add_argument("names", metavar="NAME", nargs="*")

    results = command("results", _results, "print recorded results: mean and spread over seeds, or rows")
    results.add_argument("chapter", metavar="CHAPTER", nargs="?", help="default: all")
    _add_profile(results)
    _add_format(results, "table", "csv", "json")
    _add_folder(results)

    verify = command("verify", _verify, "print the papers' claims, with verdicts from recorded results")
    verify.add_argument("chapters", metavar="CHAPTER", nargs="*", help="default: all")
    _add_profile(verify)
    _add_format(verify, "table", "json")
    _add_folder(verify)
    return parser


def _add_run(run: _Parser) -> None:
    run.add_argument("chapters", metavar="CHAPTER", nargs="*", help="default: all; see `kdsec list`")
    _add_profile(run)
    add = run.add_argument
    add("--seeds", metavar="LIST", default="0", help="such as 0,1,2 or 0-4 (default: 0)")
    add("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    add("--device", metavar="DEVICE", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--out", metavar="DIR", help="folder for results (default: results)")
    add("--fresh", action="store_true", help="run and train again, even what is finished")
    text = "change a setting of the profile; needs --out"
    add("--set", metavar="NAME=VALUE", dest="overrides", action="append", default=[], help=text)
    text = "folder of the chapters' notebooks (default: the repository's)"
    add("--notebooks", metavar="DIR", help=text)
    text = "begin with the runs that the most undecided claims need, as `kdsec verify` shows them"
    add("--gaps-first", action="store_true", help=text)
    text = "end after N minutes, with exit status 3 if anything is left; the same command then goes on"
    add("--minutes", metavar="N", type=float, default=math.inf, help=text)
    add("--plan", action="store_true", help="run nothing: list what would run, in order, and what is done")
    run.epilog = (
        "A run that is stopped loses the training that it is at: finished ones are in the cache. Exit "
        "status: 0 all is done, 1 a run failed, 2 a mistake in what was asked for, 3 the time is over and "
        "runs are left, 130 interrupted."
    )


def _add_profile(parser: _Parser) -> None:
    text = f"{', '.join(PROFILES[:-1])} or {PROFILES[-1]} (default: {PROFILES[0]})"
    parser.add_argument("--profile", metavar="PROFILE", default=PROFILES[0], help=text)


def _add_format(parser: _Parser, *formats: str) -> None:
    parser.set_defaults(formats=formats)
    parser.add_argument("--format", metavar="FORMAT", default=formats[0], help=f"{' or '.join(formats)}")


def _add_folder(parser: _Parser) -> None:
    text = "folder that `kdsec run --out DIR` wrote (default: the book's own records)"
    parser.add_argument("--out", metavar="DIR", help=text)


def _list(options: argparse.Namespace) -> int:
    rows = [
        {"number": each.number, "chapter": each.name, "title": each.title, "notebook": each.notebook}
        for each in CHAPTERS.values()
    ]
    return _show(rows, options)


def _run(options: argparse.Namespace) -> int:
    from kdsec.runner import run_chapters, short

    if options.plan:
        return _plan(options)
    outcomes = run_chapters(
        options.chapters,
        options.profile,
        parse_seeds(options.seeds),
        jobs=options.jobs,
        device=options.device,
        out=options.out,
        fresh=options.fresh,
        overrides=parse_overrides(options.overrides),
        notebooks=options.notebooks,
        gaps_first=options.gaps_first,
        minutes=options.minutes,
    )
    columns = ("chapter", "seed", "status")
    rows = [{name: getattr(outcome, name) for name in columns} for outcome in outcomes]
    for row, outcome in zip(rows, outcomes, strict=True):
        row |= {"seconds": f"{outcome.seconds:.1f}", "where": short(outcome.where)}
    print(text_table(rows))
    became = {outcome.status for outcome in outcomes}
    return 1 if "failed" in became else 3 if "left" in became else 0


def _plan(options: argparse.Namespace) -> int:
    from kdsec.planning import agenda, plan

    asked = plan(
        options.chapters,
        options.profile,
        parse_seeds(options.seeds),
        device=options.device,
        out=options.out,
        overrides=parse_overrides(options.overrides),
        notebooks=options.notebooks,
    )
    print(text_table(agenda(asked, gaps_first=options.gaps_first)))
    return 0


def _data_list(options: argparse.Namespace) -> int:
    from kdsec import data

    return _show(data.status(), options)


def _data_get(options: argparse.Namespace) -> int:
    from kdsec import data

    for name in options.names:
        check_choice("dataset", name, data.DATASETS)
    for name in options.names:
        print(f"{name}: {data.fetch(name) or 'bundled, nothing to download'}", flush=True)
    return 0


def _data_pack(options: argparse.Namespace) -> int:
    from kdsec import data

    print(data.pack(options.name, options.to, overwrite=options.overwrite))
    return 0


def _data_check(options: argparse.Namespace) -> int:
    """Check every set even when one is damaged, so that one call names all that are."""
    from kdsec import data

    here = [row["name"] for row in data.status() if not row["where"].startswith("not here")]
    names = [check_choice("dataset", name, data.DATASETS) for name in options.names] or here
    status = 0
    for name in names:
        try:
            print(data.check(name), flush=True)
        except KdsecError as error:
            status = _complain(str(error), 2)
    return status


def _results(options: argparse.Namespace) -> int:
    check_choice("format", options.format, options.formats)
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
        values = [records.typed(text) for text in frame["setting"]]
        print(frame.assign(settings=values).to_json(orient="records", indent=1, double_precision=15))
    else:
        rows = []
        for labels, values in frame.groupby(KEYS, sort=False)["value"]:
            spread = f"{values.std():.2g}" if len(values) > 1 else ""
            row = dict(zip(KEYS, labels, strict=True))
            rows.append({**row, "mean": f"{values.mean():.4g}", "sd": spread, "seeds": len(values)})
        print(text_table(rows))
    return 0


def _verify(options: argparse.Namespace) -> int:
    check_choice("format", options.format, options.formats)
    from kdsec import config
    from kdsec.report import claims, scoreboard, verdicts

    found = verdicts.scoreboard(options.profile, list(dict.fromkeys(options.chapters)), options.out)
    for name in options.chapters:
        check_choice(f"profile of chapter {name}", options.profile, config.profiles(name))
    found = [each for each in found if each.claim.asked(options.profile)]
    if options.out is not None and all(each.verdict == verdicts.NOT_RUN for each in found):
        raise KdsecError(f"no records at profile {options.profile} in {options.out}; `kdsec run` makes them")
    if options.format == "json":
        return _show([each.facts() for each in found], options)
    for name, paper in claims.papers().items():
        for ours, what in ((False, paper.paper), (True, "our own questions")):
            mine = [each.row() for each in found if each.claim.chapter == name and each.claim.ours is ours]
            if mine:
                print(f"{name}: {what}\n\n{text_table(mine)}\n")
    for line in [*scoreboard.summary(found), scoreboard.old({options.profile: found})]:
        print(line, end="\n" if line else "")
    return 0


def _show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    as_json = check_choice("format", options.format, options.formats) == "json"
    print(json.dumps(list(rows), indent=1) if as_json else text_table(rows))
    return 0
