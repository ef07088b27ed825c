"""The runner, on stand-in notebooks of a few lines that the tests write themselves."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook  # noqa: E402

from kdsec import config, fingerprint, notebook, planning, runner  # noqa: E402
from kdsec.config import CHAPTERS  # noqa: E402
from kdsec.errors import KdsecError  # noqa: E402
from kdsec.planning import agenda, plan, widest_gaps_first  # noqa: E402
from kdsec.report import claims, verdicts  # noqa: E402
from kdsec.report.records import Records, read, recipe_of  # noqa: E402
from kdsec.runner import claimed, run_chapters  # noqa: E402

PARAMETERS = 'profile = "quick"\nseed = 0\ndevice = "auto"\nout = None\noverrides = {}'
RECORD = """\
import os
from kdsec.report.records import Records
records = Records("opening", profile, seed, "digits")
records.add("kd", "net", "accuracy", 0.5 + seed / 10, n=10)
if out is not None:
    records.save(out, {"recipe": os.environ.get("KDSEC_RECIPE")})"""
ROOT = pathlib.Path(runner.__file__).parents[1]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A function that writes the opening chapter's notebook; the folders nbs and out lie in tmp_path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nbs").mkdir()

    def write(*cells, parameters=PARAMETERS, record=RECORD, prose="## The middle\ntext"):
        # The trace counts executions: a notebook that was skipped does not write to it.
        trace = f"with open({str(tmp_path / 'trace')!r}, 'a') as trace:\n    _ = trace.write(f'{{seed}}\\n')"
        parts = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(trace)]
        parts += [new_markdown_cell(prose), *map(new_code_cell, cells), new_code_cell(record)]
        for number, cell in enumerate(parts):
            cell.id = f"c{number}"
        nbformat.write(new_notebook(cells=parts), tmp_path / "nbs" / "01-opening.ipynb")

    write()
    return write


def run(*seeds, **options):
    options = {"out": "out", "notebooks": "nbs", **options}
    return run_chapters(["opening"], "quick", seeds or [0], **options)


def executions():
    trace = pathlib.Path("trace")
    return sorted(trace.read_text().split()) if trace.exists() else []


def files(folder="out/quick/opening"):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_assertions_do_not_end_a_run_with_other_settings(book):
    """They are reported instead: what a chapter asserts holds at the settings of its profile."""
    book("shown = 3\nassert shown == 4, 'never'\nassert shown == 3\nprint('on')")
    assert run()[0].status == "failed"
    assert run(overrides={"queries": (1, 2)})[0].status == "done"
    page = notebook.read(pathlib.Path("out/quick/opening/seed0.ipynb"))
    assert page.cells[4].outputs[0].text == "does not hold at these settings: shown == 4\non\n"
    assert "if not" not in page.cells[4].source


def test_exercises_run_at_quick_only():
    """What a chapter records does not come from them, but for chapter 7's, which no claim is about."""
    for chapter in CHAPTERS.values():
        source = notebook.read(ROOT / "notebooks" / chapter.notebook)
        left = notebook.without_exercises(source)
        changed = [i for i, cell in enumerate(source.cells) if cell.source != left.cells[i].source]
        titles = [i for i, cell in enumerate(source.cells) if "## Exercises" in cell.source.splitlines()]
        assert changed and titles[0] < changed[0]
        assert any("run.finish()" in cell.source for cell in left.cells[changed[-1] :])
        assert all(source.cells[i].cell_type == "code" for i in changed)
        assert all("finish()" not in source.cells[i].source for i in changed)


def test_a_run_leaves_record_and_page_and_nothing_else(book, tmp_path, monkeypatch, capfd):
    """The kernel is this interpreter even where another one is installed under the usual name."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["false"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("KDSEC_PROGRESS", "log")
    book(
        "import sys\nprint(sys.executable)",
        "assert overrides == {'queries': (1, 2)}\nopen('stray', 'w').close()",
    )
    (outcome,) = run(overrides={"queries": (1, 2)})
    assert outcome.status == "done" and outcome.where == tmp_path / "out/quick/opening/seed0.csv"
    assert files() == ["seed0.csv", "seed0.ipynb", "seed0.json"]
    assert read("out", "quick").value.tolist() == [0.5]

    text = pathlib.Path("out/quick/opening/seed0.ipynb").read_text()
    page = nbformat.reads(text, as_version=4)
    nbformat.validate(page)
    assert page.cells[4].outputs[0].text.strip() == sys.executable
    assert all(cell.execution_count for cell in page.cells if cell.cell_type == "code")
    assert (
        page.cells[1].source.splitlines()[3] == "out = None" and "remove-cell" in page.cells[1].metadata.tags
    )
    assert "papermill" not in text and ".part" not in text and "timestamp" not in text

    lines = capfd.readouterr().err
    assert "\r" not in lines and "opening seed 0: cell 5/6 (" in lines and "The middle" in lines

    first = text.encode()
    assert run(overrides={"queries": (1, 2)}, fresh=True)[0].status == "done"
    assert pathlib.Path("out/quick/opening/seed0.ipynb").read_bytes() == first


def test_a_picture_that_a_chapter_saves_comes_beside_its_rows(book):
    book(
        "import pathlib\n"
        "folder = pathlib.Path(out, 'quick', 'opening')\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
        "_ = (folder / 'example.png').write_bytes(b'pixels')"
    )
    assert run()[0].status == "done"
    assert files() == ["example.png", "seed0.csv", "seed0.ipynb", "seed0.json"]


def test_a_failing_cell_is_named_and_other_runs_go_on(book):
    book("if seed == 1:\n    raise ValueError('first\\nsecond')", "if seed == 2: raise SystemExit(3)")
    outcomes = run(0, 1, 2, jobs=2)
    assert [each.status for each in outcomes] == ["done", "failed", "failed"]
    reason = outcomes[1].reason
    assert "code cell 4 of 6" in reason and "'The middle'" in reason and "`if seed == 1:`" in reason
    assert "ValueError: first second" in reason and "\n" not in reason
    assert reason.endswith("out/quick/opening/seed1.failed.ipynb")
    failed = nbformat.read("out/quick/opening/seed1.failed.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in failed.cells for output in cell.get("outputs", []))
    kept = ["seed0.csv", "seed0.ipynb", "seed0.json"]
    assert files() == [*kept, "seed1.failed.ipynb", "seed2.failed.ipynb"]
    assert read("out", "quick").seed.tolist() == [0]

    before = {name: pathlib.Path("out/quick/opening", name).read_bytes() for name in kept}
    book("if seed == 0:\n    1 / 0")
    assert [each.status for each in run(0, 1, jobs=2)] == ["failed", "done"]
    assert {name: pathlib.Path("out/quick/opening", name).read_bytes() for name in kept} == before
    assert "seed0.failed.ipynb" in files() and "seed1.failed.ipynb" not in files() and "seed1.json" in files()


def test_what_went_wrong_is_told_apart(book):
    """An error of ours speaks for itself, a dead kernel is told with its cell, and a record must be there."""
    ours = "from kdsec.errors import KdsecError\nif seed == 0:\n    raise KdsecError('no data; fetch it')"
    killed = "import os\nif seed == 1:\n    os.kill(os.getpid(), 9)"
    book(ours, killed, record="pass")
    error, death, forgotten = (each.reason for each in run(0, 1, 2, jobs=2))
    assert "`from kdsec.errors import KdsecError`: no data; fetch it;" in error
    assert "code cell 5 of 6" in death and "the kernel died" in death
    assert "run.finish()" in forgotten
    assert files() == [f"seed{seed}.failed.ipynb" for seed in range(3)]


@pytest.fixture
def instantly(monkeypatch):
    """Make runs instant: results appear in place without a process or kernel."""

    class Process:
        def __init__(self, spec, *_):
            self.spec = spec
            self.channel, self.other = multiprocessing.Pipe()
            self.other.send("")

        def follow(self):
            spec = self.spec
            with open("trace", "a") as trace:
                trace.write(f"{spec.seed}\n")
            records = Records(spec.chapter, spec.profile, spec.seed, "digits")
            records.add("kd", "net", "accuracy", 0.5)
            records.save(spec.out, {"recipe": spec.recipe})
            source = notebook.read(spec.notebook)
            executed = notebook.with_parameters(source, spec.parameters)
            page = notebook.finished(source, executed, spec.parameters, spec.shown)
            notebook.write(page, spec.final(".ipynb"))
            time.sleep(0.2)
            return runner._over(spec, "done")

    monkeypatch.setattr(runner, "_Process", Process)


def test_what_is_done_is_kept_until_something_that_matters_changes(book, instantly):
    def again(**options):
        before = len(executions())
        (outcome,) = run(**options)
        assert (outcome.status == "done") == (len(executions()) > before)
        return outcome.status

    assert again() == "done"
    assert again() == "resumed"
    page = pathlib.Path("out/quick/opening/seed0.ipynb")
    book(prose="## Better words")
    assert (
        again() == "resumed" and "Better words" in page.read_text() and "The middle" not in page.read_text()
    )
    assert again(overrides={"alpha": 0.5}) == "done"
    assert again() == "done"
    book("changed = True")
    assert again() == "done"
    page.unlink()
    assert again() == "done"
    page.write_text("{}")
    assert again() == "done" and "changed" in page.read_text()
    record = page.with_suffix(".csv")
    record.write_text(record.read_text()[:-5])
    assert again() == "done"
    assert again(fresh=True) == "done"
    assert again() == "resumed"


def test_a_page_is_made_again_when_the_recorded_runs_that_it_shows_change(book, instantly, monkeypatch):
    """The verdict of a chapter is drawn from them: a book built after new records must not show the old."""
    monkeypatch.setenv("KDSEC_RESULTS", "recorded")
    assert [run()[0].status for _ in range(2)] == ["done", "resumed"]
    run(1, out="recorded")  # one more seed is recorded
    assert [run()[0].status for _ in range(2)] == ["done", "resumed"]
    shutil.rmtree("recorded")
    assert [run()[0].status for _ in range(2)] == ["done", "resumed"]
    # A run among the recorded ones changes them; that alone is no reason to do it, or others, again.
    assert [run(seed, out="recorded")[0].status for seed in (0, 1, 0, 1)] == ["done"] * 2 + ["resumed"] * 2
    pathlib.Path("link").symlink_to("recorded")
    assert [run(seed, out="link")[0].status for seed in (0, 1)] == ["resumed"] * 2


def test_a_clone_with_committed_records_only_has_nothing_to_run(book, instantly):
    assert run(out=None)[0].where.is_relative_to(pathlib.Path("results").absolute())
    pathlib.Path("results/quick/opening/seed0.ipynb").unlink()
    assert run(out=None)[0].status == "resumed"
    os.rename("results", "out")
    assert run(out="out")[0].status == "done"
    assert executions() == ["0", "0"]


def test_two_at_a_time_give_the_same_as_one(book):
    run(1, out="one")
    run(0, 1, out="two", jobs=2)
    for name in files("one/quick/opening"):
        first, second = (
            pathlib.Path(folder, "quick/opening", name).read_bytes() for folder in ("one", "two")
        )
        assert first == second, name


@pytest.fixture
def nothing_starts(monkeypatch):
    def start(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(runner, "_Process", start)


BAD = {
    "unknown chapter": {"chapters": ["opning"]},
    "unknown profile": {"profile": "medium"},
    "unknown device": {"device": "tpu"},
    "unknown setting": {"overrides": {"epoch": 3}},
    "wrong type": {"overrides": {"alpha": "much"}},
    "cannot be handed": {"overrides": {"alpha": float("inf")}},
    "name another folder": {"overrides": {"alpha": 0.5}, "out": None},
    "given twice": {"seeds": [1, 1]},
    "whole number from 0": {"seeds": [-1]},
    "is not a whole": {"seeds": ["a"]},
    "no seed": {"seeds": []},
    "jobs": {"jobs": 0},
    "cannot read the notebook": {"notebooks": "nowhere"},
    "cannot write": {"out": "nbs/01-opening.ipynb/below"},
    "out='' is not the path": {"out": ""},
    "out=5 is not the path": {"out": 5},
    "notebooks='' is not the path": {"notebooks": ""},
    "cannot write to .*loop": {"out": "loop/o"},
    "cannot write to .*nnn": {"out": "n" * 5000},
    "is not the path of": {"out": "null\0"},
    "minutes": {"minutes": float("nan")},
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_found_before_anything_starts(book, nothing_starts, message):
    pathlib.Path("loop").symlink_to("loop")
    asked = {"chapters": ["opening"], "profile": "quick", "seeds": [0], "out": "out", "notebooks": "nbs"}
    with pytest.raises(KdsecError, match=message) as caught:
        run_chapters(**{**asked, **BAD[message]})
    assert "\n" not in str(caught.value)
    assert not pathlib.Path("out").exists() and not pathlib.Path("results").exists()


@pytest.mark.parametrize("cache", ["trace", "trace/below", "loop"])
def test_a_cache_that_cannot_be_used_is_found_at_once(book, nothing_starts, cache, monkeypatch):
    pathlib.Path("trace").touch()
    pathlib.Path("loop").symlink_to("loop")
    monkeypatch.setenv("KDSEC_CACHE", cache)
    with pytest.raises(KdsecError, match="KDSEC_CACHE") as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_found_before_anything_starts(book, nothing_starts):
    with pytest.raises(KdsecError, match=r"cuda.*auto or cpu"):
        run(device="cuda")


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        (PARAMETERS + "\nsed = 3", "sed"),
        (PARAMETERS.replace("overrides = {}", ""), "overrides"),
        ("profile = (", "seed"),
        (None, "seed"),
    ],
)
def test_parameters_must_be_those_that_are_passed(book, nothing_starts, parameters, name):
    book(parameters=parameters or PARAMETERS)
    if parameters is None:
        nbformat.write(new_notebook(cells=[new_code_cell("x = 1")]), "nbs/01-opening.ipynb")
    with pytest.raises(KdsecError, match=rf"tagged 'parameters'.*{name}"):
        run()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', "\0"])
def test_a_damaged_notebook_is_named(book, nothing_starts, text):
    pathlib.Path("nbs/01-opening.ipynb").write_text(text)
    with pytest.raises(KdsecError, match=r"01-opening\.ipynb is not a notebook") as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["papermill", "ipykernel", "nbformat"])
def test_without_jupyter_one_line_says_what_to_install(book, nothing_starts, missing, monkeypatch):
    find = planning.importlib.util.find_spec
    monkeypatch.setattr(
        planning.importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(KdsecError, match=r"pip install '\.\[run\]'"):
        run()


def test_an_installed_copy_runs_the_notebooks_of_the_clone_it_was_made_from(tmp_path, monkeypatch):
    """``pip install .`` instead of ``pip install -e .``; a clone with other code is refused."""
    installed, clone = tmp_path / "site-packages" / "kdsec", tmp_path / "clone"
    for package in (installed, clone / "kdsec"):
        package.mkdir(parents=True)
        (package / "runner.py").write_text("one = 1\n")
    (clone / "pyproject.toml").touch()
    monkeypatch.setattr(planning, "repository", lambda: None)
    monkeypatch.setattr(planning, "PACKAGE", installed)
    monkeypatch.chdir(tmp_path)
    assert planning.checkout(tmp_path) is None
    with pytest.raises(KdsecError, match="run kdsec in a clone, or name their folder"):
        planning._notebooks()
    (clone / "notebooks").mkdir()
    monkeypatch.chdir(clone)
    assert planning._notebooks() == clone / "notebooks"
    spec = planning.RunSpec("opening", "quick", 0, "cpu", {}, clone / "notebooks" / "n.ipynb", clone, "feed")
    seen = runner._environment(spec, tmp_path, threads=1, fresh=False)
    assert seen["PYTHONPATH"].split(os.pathsep)[0] == str(clone)
    (clone / "kdsec" / "runner.py").write_text("one = 2\n")
    with pytest.raises(KdsecError, match=r"has other code than the clone .*; install the clone with"):
        planning._notebooks()


def test_no_run_is_begun_when_the_time_is_over(book, instantly, monkeypatch, capfd):
    clock = iter(range(1000))
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(next(clock)))
    first, second = run(0, 1, minutes=1.5 / 60)
    assert (first.status, second.status) == ("done", "left") and "not begun" in second.reason
    assert capfd.readouterr().err.splitlines()[-1].startswith("the time is over: 1 of 2 runs are over, ")
    assert [outcome.status for outcome in run(0, 1, minutes=5)] == ["resumed", "done"]
    assert executions() == ["0", "1"]


TRAINING = """\
import pathlib, time, torch
from kdsec.cache import Cache
def train(number):
    with open(LOG, "a") as log:
        print(number, file=log)
    while number == 2 and not pathlib.Path(LOG).with_name("go").exists():
        time.sleep(0.05)
    return {"weights": torch.full((1,), float(number))}
for number in range(4):
    Cache().tensors("net", ["a stand-in", number], torch.device("cpu"), lambda: train(number))"""


def test_a_run_is_stopped_when_the_time_is_over_and_loses_one_training(book, tmp_path, monkeypatch, capfd):
    """Clock and trainings are stand-ins: the time is over while the third of four trainings is under way."""
    log, now = tmp_path / "log", time.monotonic
    begun = [lambda: log.exists() and "2\n" in log.read_text()]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now() + 1e6 * begun[0]())
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / "cache"))
    book(TRAINING.replace("LOG", repr(str(log))))
    outcomes = run(0, 1, minutes=1000)
    assert [each.status for each in outcomes] == ["left", "left"]
    assert "stopped" in outcomes[0].reason and "not begun" in outcomes[1].reason
    assert not any(each.exists() for each in (tmp_path / "out" / "quick").rglob("*seed*")), "half a run"
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("the time is over: 0 of 2 runs are over, 2 more trainings in the cache; the same ")

    assert run(0, minutes=1e-9)[0].status == "left"
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("the time is over and nothing was finished in it") and "more --minutes" in said

    begun[0] = lambda: False
    (tmp_path / "go").touch()
    assert [each.status for each in run(0, 1, minutes=1000)] == ["done", "done"]
    assert log.read_text().split() == ["0", "1", "2", "2", "3"], (
        "the one under way is trained again, no other"
    )
    assert [each.status for each in run(0, 1, minutes=1000)] == ["resumed", "resumed"]


def record_claims(job):
    """A record with every number that the claims of its chapter ask for."""
    settings = config.settings(job.chapter, job.profile)
    records = Records(job.chapter, job.profile, job.seed, "digits")
    for claim in claims.papers()[job.chapter].claims:
        tests = [each for check in claim.realised for each in (check.quantity, check.than)]
        for quantity in filter(None, (claim.first, claim.second, *tests)):
            arm, metric, setting, model = quantity._filled(settings)
            model = model or "net"
            pairs = dict(part.split("=") for part in setting.split(";") if part)
            with contextlib.suppress(KdsecError):  # several claims ask for it
                records.add(arm, model, metric, 0.5 + job.seed / 7, **pairs)
    records.save(job.out, {"recipe": job.recipe})


def test_the_widest_gaps_of_the_scoreboard_come_first(tmp_path):
    """First what is not yet run anywhere, most claims first; then chapter by chapter to three seeds."""

    everything = plan([], "paper", [0, 1, 2, 3], out=tmp_path)

    def todo(*seeds):
        return [job for job in everything if job.seed in seeds and not job.final(".json").exists()]

    def order(jobs):
        return [(job.chapter, job.seed) for job in widest_gaps_first(jobs)]

    board = verdicts.scoreboard("paper", folder=tmp_path)
    board = [each.claim.chapter for each in board if each.claim.asked("paper")]
    ranked = sorted(CHAPTERS, key=lambda name: -board.count(name))
    assert ranked != list(CHAPTERS), "this says nothing where the book's order is that of the gaps"
    rest = [(name, seed) for name in ranked for seed in (1, 2)]
    assert order(todo(0, 1, 2)) == [*((name, 0) for name in ranked), *rest]

    most = ranked[0]
    record_claims(next(job for job in todo(0) if job.chapter == most))
    found = verdicts.scoreboard("paper", [most], tmp_path)
    assert verdicts.NOT_RUN not in [each.verdict for each in found if each.claim.asked("paper")]
    assert order(todo(0, 1, 2)) == [*((name, 0) for name in ranked[1:]), *rest]

    for job in todo(0, 1, 2):
        if job.chapter == most:
            record_claims(job)
    after = order(todo(0, 1, 2, 3))[3 * (len(CHAPTERS) - 1) :]
    assert {seed for _, seed in after} == {3} and len(after) == len(CHAPTERS), (
        "three seeds decide, a fourth can wait"
    )
    old = [job for job in everything if (job.chapter, job.seed) == (most, 0)]
    new = [job for job in todo(3) if job.chapter == most]
    assert order([*old, *new]) == [(most, 3), (most, 0)], "what only renews a record comes last"


def test_the_agenda_is_the_order_with_what_is_done_last(tmp_path):
    specs = plan(["opening", "crossing"], "paper", [0, 1], out=tmp_path)
    opening, crossing = specs[:2], specs[2:]
    record_claims(crossing[0])
    rows = agenda(specs, gaps_first=True)
    assert [(row["chapter"], row["seed"]) for row in rows] == [
        (spec.chapter, spec.seed) for spec in (*widest_gaps_first([*opening, crossing[1]]), crossing[0])
    ]
    assert [row["status"] for row in rows] == ["to run"] * 3 + ["done"]
    lacking = {row["chapter"]: row[f"claims {verdicts.NOT_RUN}"] for row in rows}
    assert lacking["crossing"] == 0 < lacking["opening"]
    assert [row["chapter"] for row in agenda(specs)] == ["opening", "opening", "crossing", "crossing"]
    assert agenda([]) == []


def test_one_folder_runs_once(tmp_path):
    with claimed(tmp_path / "part"):
        (tmp_path / "part" / "file").write_text("")
        with pytest.raises(KdsecError, match="another process"), claimed(tmp_path / "part"):
            pass
        assert (tmp_path / "part" / "file").exists()
    (tmp_path / "part" / "left by a killed run").mkdir(parents=True)
    with claimed(tmp_path / "part"):
        assert not list((tmp_path / "part").iterdir())
    assert not list(tmp_path.iterdir())


def test_the_recipe_covers_what_a_chapter_imports_and_no_more():
    cells = ["%pip install x\nfrom kdsec.defenses.stingy import Stingy", "from kdsec import distill, run"]
    cells += ["from kdsec.report import plots, metrics, tables", "from kdsec.exercises import opening"]
    behind = {str(file.relative_to(planning.PACKAGE)) for file in planning._code_behind("opening", cells)}
    wanted = {"defenses/stingy.py", "distill.py", "config/opening.py", "models/resnet.py", "run.py"}
    assert behind >= wanted | {"train.py", "data/imageset.py", "report/records.py", "report/metrics.py"}
    others = {"defenses/nasty.py", "attacks/poisoning.py", "config/crossing.py", "cli.py"}
    assert not behind & (others | {"report/plots.py", "report/tables.py", "exercises/opening.py"})
    assert all((planning.PACKAGE / name).exists() for name in (*fingerprint.DRIVERS, *fingerprint.DRAWING))


def test_a_new_refusal_of_settings_outdates_no_record():
    """Also not through the class of the settings, whose file imports what checks them."""
    text = (planning.PACKAGE / "config/opening.py").read_text()
    files = {str(file.relative_to(planning.PACKAGE)) for file in fingerprint.source_dependencies(text)}
    assert "config/__init__.py" in files or "config/fields.py" in files
    assert "config/checks.py" not in files


def test_a_cell_is_described_by_the_nearest_heading():
    cells = [new_markdown_cell("# A\ntext\n## B"), new_code_cell("x = 1"), new_markdown_cell("t")]
    page = new_notebook(cells=[*cells, new_code_cell("y")])
    assert notebook.describe(page, 1) == (1, 2, "B") and notebook.describe(page, 3) == (2, 2, "B")


@pytest.mark.parametrize(
    "given",
    [{}, {"KDSEC_DATA": "d", "OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "7"}],
)
def test_the_kernel_gets_the_users_variables_and_its_share_of_cores(given):
    spec = planning.RunSpec("opening", "quick", 0, "cpu", {}, *[pathlib.Path("p")] * 2, "feed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", {"MPLBACKEND": "agg", "PATH": "p", **given})
        seen = runner._environment(spec, pathlib.Path("scratch"), threads=2, fresh=True)
    openmp = given.get("OMP_NUM_THREADS", "2")
    assert seen["OMP_NUM_THREADS"] == openmp and seen["PATH"] == "p" and "MPLBACKEND" not in seen
    # PyTorch prefers MKL's number to OpenMP's: setting the one must set the other.
    assert seen["MKL_NUM_THREADS"] == given.get("MKL_NUM_THREADS", openmp)
    assert seen["KDSEC_RECIPE"] == "feed" and seen["KDSEC_FRESH"] == "1"
    assert "KDSEC_DATA" not in given or pathlib.Path(seen["KDSEC_DATA"]).is_absolute()
    assert seen.items() >= runner.KEEP_MEMORY.items()


def test_a_terminal_gets_a_live_bar(book, monkeypatch, capfd):
    monkeypatch.setenv("KDSEC_PROGRESS", "bar")
    run()
    screen = capfd.readouterr().err
    assert "\r" in screen and "4/4" in screen and "opening seed 0: done in" in screen


WAIT = """\
import os, pathlib, time
if seed == 1 and pathlib.Path({flag!r}).exists():
    pathlib.Path({pid!r}).write_text(str(os.getpid()))
    time.sleep(300)"""


def until(condition, what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def started(*seeds):
    """`kdsec run` in a process group of its own, as a shell starts it."""
    command = [sys.executable, "-m", "kdsec", "run", "opening", "--seeds", ",".join(map(str, seeds))]
    return subprocess.Popen(
        [*command, "--out", "out", "--notebooks", "nbs"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_signals,
    )


def _heed_signals():
    """Where these tests run in the background, a shell or nohup may have told them to ignore two of them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def scratch_folders(tmp_path):
    return [path.name for path in (tmp_path / "tmp").glob("kdsec-*")]


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("kind", "group"),
    [
        (signal.SIGINT, True),
        *(
            pytest.param(kind, group, marks=pytest.mark.slow)
            for kind, group in (
                (signal.SIGINT, False),
                (signal.SIGTERM, False),
                (signal.SIGTERM, True),
                (signal.SIGHUP, True),
                (signal.SIGKILL, False),
            )
        ),
    ],
)
def test_a_killed_run_leaves_nothing_and_is_taken_up_again(book, tmp_path, own_tmp, kind, group):
    """A terminal signals its whole foreground group, `kill` the runner alone."""
    flag, pid = tmp_path / "slow", tmp_path / "pid"
    book(WAIT.format(flag=str(flag), pid=str(pid)))
    flag.touch()
    process = started(0, 1)
    try:
        until(lambda: pid.exists() and pid.read_text(), "the kernel never reached the slow cell")
        kernel = int(pid.read_text())
        assert alive(kernel)
        os.killpg(process.pid, kind) if group else process.send_signal(kind)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    until(lambda: not alive(kernel), "the kernel survived")
    until(lambda: not list(pathlib.Path("out/quick/opening").glob(".*")), "the staging folder stayed")
    until(lambda: not scratch_folders(tmp_path), "the temporary folder stayed")
    assert files() == ["seed0.csv", "seed0.ipynb", "seed0.json"]
    if kind != signal.SIGKILL:
        assert process.returncode == 130
        last = errors.strip().splitlines()[-1]
        assert last.startswith("kdsec: error: interrupted (1 of 2 runs finished")
        assert "Traceback" not in errors
    flag.unlink()
    assert [outcome.status for outcome in run(0, 1)] == ["resumed", "done"]
    assert recipe_of("out", "quick", "opening", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_run_is_told_and_leaves_nothing(book, tmp_path, own_tmp, kind):
    process = started(0)
    status = pathlib.Path(f"/proc/{process.pid}/status")

    def handled():  # the mask of signals that the process catches
        line = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1

    until(handled, "no handler was installed")
    os.killpg(process.pid, kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.count("\n") == 1, errors
    assert errors.startswith("kdsec: error: interrupted (0 of 1 runs finished")
    assert not scratch_folders(tmp_path) and executions() == []
    assert not (tmp_path / "out").exists()


def test_only_runs_that_are_kept_are_counted(book, monkeypatch):
    """A failed run is over, but nothing of it is kept."""
    book("assert seed")
    over = runner._over

    def stop_after_two(spec, *arguments, **options):
        outcome = over(spec, *arguments, **options)
        if spec.seed == 1:
            signal.raise_signal(signal.SIGTERM)
        return outcome

    monkeypatch.setattr(runner, "_over", stop_after_two)
    with pytest.raises(KeyboardInterrupt, match="1 of 3 runs"):
        run(0, 1, 2)


def test_other_settings_are_recorded_where_the_chapter_asserts_its_own(book):
    book("assert profile != 'quick'  # holds at the settings of no profile")
    assert run()[0].status == "failed"
    assert run(overrides={"alpha": 0.5})[0].status == "done"


def test_a_full_disk_is_found_before_anything_runs(book, monkeypatch):
    full = lambda dir: open("/dev/full", "wb")  # noqa: E731, SIM115
    monkeypatch.setattr(runner.tempfile, "TemporaryFile", full)
    with pytest.raises(KdsecError, match="cannot write to .*out: No space left"):
        run()
    assert executions() == []
