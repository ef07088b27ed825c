"""The command line: what it prints, its exit status, and one line for every mistake."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

import kdsec
from kdsec import cli, data, runner
from kdsec.cli import main
from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError
from kdsec.report.records import COLUMNS, Records
from kdsec.report.text import text_table
from kdsec.runner import Outcome

ROOT = pathlib.Path(kdsec.__file__).parents[1]


def kdsec_process(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kdsec", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def results(tmp_path):
    for seed, value in enumerate([0.5, 0.7, 0.9]):
        records = Records("opening", "quick", seed, "digits")
        records.add("kd", "net", "accuracy", value, n=100, temperature=4)
        records.add("hard labels", "net", "accuracy", 1 / 3)
        records.save(tmp_path, {"recipe": "x"})
    return str(tmp_path)


MISTAKES = {
    "": "COMMAND",
    "lst": "'lst'",
    "list --format yaml": "choose from: table, json",
    "list --nonsense": "--nonsense",
    "--vers": "COMMAND",
    "run opning": "did you mean 'opening'",
    "run --profile medium": "choose from: quick, small, second, paper",
    "run --prof quick": "--prof",
    "run --seeds": "expected one argument",
    "run --seeds a": "0,1,2 or 0-4",
    "run --seeds 1.5": "0,1,2 or 0-4",
    "run --seeds -1": "--seeds",
    "run --seeds=-1": "0,1,2 or 0-4",
    "run --seeds 1,,2": "0,1,2 or 0-4",
    "run --seeds 4-1": "low to high",
    "run --seeds 0-9999999": "at most 1000",
    "run --seeds 1,0-2": "1 is given twice",
    "run --seeds 9999999999": "2^32",
    "run --seeds ²": "0,1,2 or 0-4",
    "run --jobs 0": "1 or more",
    "run --jobs two": "'two'",
    "run --minutes 0": "above 0",
    "run --minutes soon": "'soon'",
    "run --minutes nan": "finite",
    "run --device tpu": "choose from: auto, cpu, cuda",
    "run --set epochs": "NAME=VALUE",
    "run --set alpha=0.5": "--out",
    "run --set alpha=0.5 --set alpha=0.6": "new name",
    "run --set alfa=0.5 --out o": "did you mean 'alpha'",
    "run --set alpha=much --out o": "wrong type",
    "run --notebooks nowhere --out o": "nowhere",
    **{
        f"{command}=": "variable of the shell"
        for command in (
            "run --out",
            "run --seeds",
            "run --notebooks",
            "results --out",
            "verify --out",
            "data pack x --to",
        )
    },
    "data": "COMMAND",
    "data list --format csv": "choose from: table, json",
    "data get": "NAME",
    "data get cifar": "did you mean 'cifar10'",
    "data pack digits": "--to",
    "data pack digit --to o": "did you mean 'digits'",
    "data check mnits": "did you mean 'mnist'",
    "results opning": "did you mean 'opening'",
    "results --profile big": "choose from: quick, small, second, paper",
    "results --format xml": "choose from: table, csv, json",
    "results --out nowhere": "no records",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_every_mistake_is_one_line_and_status_2(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = main(command.split())
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    assert printed.err.startswith("kdsec: error: ") and printed.err.count("\n") == 1
    assert MISTAKES[command] in printed.err
    assert not list(tmp_path.iterdir()), "a mistake left something behind"


def test_list_names_every_chapter(capsys):
    assert main(["list"]) == 0
    table = capsys.readouterr().out
    assert all(each.title in table and each.name in table for each in CHAPTERS.values())
    assert main(["list", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["chapter"] for row in rows] == list(CHAPTERS)


def test_version_and_help_end_well(capsys):
    for option, expected in (("--version", kdsec.__version__), ("--help", "results")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0 and expected in capsys.readouterr().out


@pytest.mark.parametrize("command", ["'--help'", "'list'"])
def test_small_commands_do_not_load_torch(command):
    code = f"import sys, kdsec.cli\ntry: kdsec.cli.main([{command}])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    modules = done.stdout.splitlines()[-1]
    assert "'kdsec.cli'" in modules
    assert not any(f"'{heavy}'" in modules for heavy in ("torch", "pandas", "numpy", "papermill"))


def test_results_show_mean_and_spread_over_seeds(results, capsys):
    assert main(["results", "opening", "--out", results]) == 0
    header, _, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == [*cli.KEYS, "mean", "sd", "seeds"]
    assert first.split() == ["opening", "digits", "kd", "net", "temperature=4", "accuracy", "0.7", "0.2", "3"]
    assert second.split()[-3:] == ["0.3333", "0", "3"]


def test_results_give_the_rows_as_csv_and_json(results, capsys):
    main(["results", "--out", results, "--format", "csv"])
    text = capsys.readouterr().out
    header, *rows = csv.reader(io.StringIO(text))
    assert tuple(header) == COLUMNS and len(rows) == 6
    stored = pathlib.Path(results, "quick/opening/seed0.csv").read_text().splitlines()
    assert text.splitlines()[:3] == stored
    main(["results", "--out", results, "--format", "json"])
    records = json.loads(capsys.readouterr().out)
    assert [list(record) for record in records] == [[*COLUMNS, "settings"]] * 6
    assert records[0]["value"] == 0.5 and records[1]["n"] is None


def test_results_without_out_are_those_of_the_book(results, monkeypatch, capsys):
    monkeypatch.setenv("KDSEC_RESULTS", results)
    assert main(["results"]) == 0 and "temperature=4" in capsys.readouterr().out


def test_a_single_seed_has_no_spread(tmp_path, capsys):
    records = Records("opening", "quick", 0, "digits")
    records.add("kd", "net", "accuracy", 0.5)
    records.save(tmp_path, {})
    main(["results", "--out", str(tmp_path)])
    assert "nan" not in capsys.readouterr().out


def test_run_passes_everything_on_and_tells_what_became_of_it(monkeypatch, capsys):
    asked = {}

    def fake(chapters, profile, seeds, **options):
        asked.update(chapters=chapters, profile=profile, seeds=seeds, **options)
        here = pathlib.Path.cwd() / "o"
        return [
            Outcome("opening", 0, "done", 1.25, here),
            Outcome("opening", 1, "failed", 3.0, here, "why"),
        ]

    monkeypatch.setattr(runner, "run_chapters", fake)
    line = "run opening --profile small --seeds 0-2,7 --jobs 3 --device cpu --out o --fresh --notebooks n"
    line += " --gaps-first --minutes 90"
    sets = ["--set", "queries=(5, 9)", "--set", "teacher=resnet8", "--set", "alpha=0.5"]
    assert main([*line.split(), *sets]) == 1
    assert asked == {
        "chapters": ["opening"],
        "profile": "small",
        "seeds": [0, 1, 2, 7],
        "jobs": 3,
        "device": "cpu",
        "out": "o",
        "fresh": True,
        "overrides": {"queries": (5, 9), "teacher": "resnet8", "alpha": 0.5},
        "notebooks": "n",
        "gaps_first": True,
        "minutes": 90.0,
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["opening", "0", "done", "1.2", "o"] and "failed" in lines[3]


@pytest.mark.parametrize(
    ("became", "status"),
    [("done resumed", 0), ("done failed", 1), ("done left", 3), ("left failed", 1), ("left", 3)],
)
def test_the_exit_status_says_whether_to_go_on(monkeypatch, capsys, became, status):
    here = pathlib.Path.cwd() / "o"
    outcomes = [Outcome("opening", seed, each, 1.0, here) for seed, each in enumerate(became.split())]
    monkeypatch.setattr(runner, "run_chapters", lambda *_, **__: outcomes)
    assert main(["run", "--minutes", "9"]) == status
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "3 the time is over and runs are left" in " ".join(capsys.readouterr().out.split())


def test_a_plan_is_printed_and_nothing_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "run_chapters", None)
    line = f"run opening crossing --profile paper --seeds 0,1 --out {tmp_path} --gaps-first --plan"
    assert main(line.split()) == 0
    rows = [each.split()[:4] for each in capsys.readouterr().out.splitlines()[2:]]
    assert rows[0] == ["crossing", "0", "to", "run"] and len(rows) == 4 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("problem", "status", "message"),
    [
        (KdsecError("two\nlines"), 2, "kdsec: error: two lines\n"),
        (OSError(28, "No space left on device", "big.npz"), 2, "big.npz: No space left on device"),
        (PermissionError(13, "Permission denied", "o/x"), 2, "o/x: Permission denied"),
        (
            KeyboardInterrupt("1 of 2 runs finished and kept"),
            130,
            "interrupted (1 of 2 runs finished and kept)",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command"),
    ],
)
def test_what_goes_wrong_is_one_line(monkeypatch, capsys, problem, status, message):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(runner, "run_chapters", fail)
    assert main(["run"]) == status
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "run_chapters", fail)
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_data_commands_print_what_the_package_returns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))
    assert main(["data", "list"]) == 0 and "digits" in capsys.readouterr().out
    assert main(["data", "list", "--format", "json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(data.DATASETS)
    assert main(["data", "pack", "digits", "--to", str(tmp_path / "packed")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "packed" / "digits.npz")
    assert main(["data", "get", "digits"]) == 0 and "digits" in capsys.readouterr().out
    assert main(["data", "check"]) == 0 and capsys.readouterr().out.startswith("digits:")


def test_data_check_goes_on_after_a_damaged_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(b"PK")
    assert main(["data", "check", "mnist", "digits"]) == 2
    printed = capsys.readouterr()
    assert "mnist" in printed.err and printed.err.count("\n") == 1 and printed.out.startswith("digits:")


@pytest.mark.parametrize(
    ("to", "status", "says"),
    [
        ("| true", 0, ""),
        (">&-", 2, "standard output is closed"),
        (">/dev/full", 2, "No space left"),
        ("2>&-", 0, ""),
    ],
)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_that_nobody_takes_is_one_line_or_none(to, status, says, buffered):
    command = f"PYTHONUNBUFFERED={buffered} {sys.executable} -m kdsec list {to}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status and says in done.stderr
    assert done.stderr.count("\n") == (1 if says else 0), done.stderr


def test_a_terminal_that_cannot_show_a_name_shows_its_code(tmp_path, results):
    (tmp_path / "\u00fc").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "kdsec", "data", "pack", "digits", "--to", str(tmp_path / "\u00fc")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and "\\xfc" in done.stdout


@pytest.mark.parametrize("out", ["loop", "n" * 5000, "list"])
@pytest.mark.parametrize("command", ["results", "verify", "run opening", "data pack digits"])
def test_a_folder_that_cannot_be_used_is_one_line(command, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("loop").symlink_to("loop")
    pathlib.Path("list").touch()
    assert main([*command.split(), "--to" if command.startswith("data") else "--out", out]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("kdsec: error: ")


def test_a_chapter_named_twice_counts_once(capsys):
    main(["verify", "opening"])
    once = capsys.readouterr().out
    main(["verify", "opening", "opening"])
    assert capsys.readouterr().out == once


def test_the_module_is_the_command():
    done = kdsec_process("run", "opning")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("kdsec: error: unknown chapter 'opning'")


def test_a_table_is_aligned():
    lines = text_table([{"name": "a", "value": "1.5"}, {"name": "long", "value": "10.25"}]).splitlines()
    assert lines == ["name  value", "----  -----", "a       1.5", "long  10.25"]
    assert text_table([]).strip() == ""


@pytest.mark.parametrize("empty", ["", " ", "\t"])
@pytest.mark.parametrize(
    "command",
    [
        "list --format",
        "data list --format",
        "data get",
        "data check",
        "data pack digits --to",
        "results --out",
        "verify --out",
        "run --out",
        "run --notebooks",
        "run --set",
        "audit --out o --model",
        "audit --out o --model m.py:build --queries",
        "audit --out o --model m.py:build --distillation-set",
        "audit --out o --model m.py:build --queries q.npz --student",
    ],
)
def test_an_empty_argument_is_refused_and_named(command, empty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *before, option = command.split()
    forms = [[*before, option, empty]] + [[*before, f"{option}={empty}"]] * option.startswith("--")
    for arguments in forms:
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "empty; is a variable of the shell unset?" in said and said.count("\n") == 1
        assert option in said or not option.startswith("--")
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, capsys):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", nobody)
    monkeypatch.delenv("KDSEC_DATA", raising=False)
    assert main(["data", "list"]) == 2
    assert "set HOME, or KDSEC_CACHE and KDSEC_DATA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EACCES, "allow this one")],
)
def test_only_a_full_disk_asks_for_space(number, advice, monkeypatch, capsys):
    def failing(_):
        raise OSError(number, os.strerror(number), "file")

    monkeypatch.setattr(cli, "_list", failing)
    assert main(["list"]) == 2
    said = capsys.readouterr().err
    assert advice in said and ("free some space" in said) == (number != errno.EACCES)
