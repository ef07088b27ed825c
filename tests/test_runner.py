"""The runner, on stand-in notebooks of a few lines that the tests write themselves."""

from __future__ import annotations

import contextlib
import json
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

from kdsec import chapters, launch, notebook, plan, runner  # noqa: E402
from kdsec.chapters import CHAPTERS  # noqa: E402
from kdsec.errors import KdsecError  # noqa: E402
from kdsec.execute import claimed  # noqa: E402
from kdsec.report import claims  # noqa: E402
from kdsec.report.records import Records, read, recipe_of  # noqa: E402
from kdsec.runner import run_chapters  # noqa: E402

PARAMETERS = 'profile = "quick"\nseed = 0\ndevice = "auto"\nout = None\noverrides = {}'
RECORD = """\
import os
from kdsec.report import claims  # noqa: E402
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
    """Make runs instant: results appear in place without a kernel."""

    def finish(self, job):
        with open("trace", "a") as trace:
            trace.write(f"{job.seed}\n")
        records = Records(job.chapter, job.profile, job.seed, "digits")
        records.add("kd", "net", "accuracy", 0.5)
        records.save(job.out, {"recipe": job.recipe})
        source = notebook.read(job.notebook)
        executed = notebook.with_parameters(source, job.parameters)
        page = notebook.finished(source, executed, job.parameters, job.shown)
        notebook.write(page, job.final(".ipynb"))
        return ""

    monkeypatch.setattr(runner.Launcher, "run", finish)


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
    run(0, 1, out="one")
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

    monkeypatch.setattr(launch.subprocess, "Popen", start)


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
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_found_before_anything_starts(book, nothing_starts, message):
    asked = {"chapters": ["opening"], "profile": "quick", "seeds": [0], "out": "out", "notebooks": "nbs"}
    with pytest.raises(KdsecError, match=message) as caught:
        run_chapters(**{**asked, **BAD[message]})
    assert "\n" not in str(caught.value)
    assert not pathlib.Path("out").exists() and not pathlib.Path("results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_found_before_anything_starts(book, nothing_starts):
    with pytest.raises(KdsecError, match=r"cuda.*auto or cpu"):
        run(device="cuda")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (PARAMETERS + "\nsed = 3", "unknown sed"),
        (PARAMETERS.replace("overrides = {}", ""), "lacks overrides"),
        ("profile = (", "not plain Python"),
    ],
)
def test_parameters_must_be_those_that_are_passed(book, nothing_starts, parameters, message):
    book(parameters=parameters)
    with pytest.raises(KdsecError, match=message):
        run()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', "\0"])
def test_a_damaged_notebook_is_named(book, nothing_starts, text):
    pathlib.Path("nbs/01-opening.ipynb").write_text(text)
    with pytest.raises(KdsecError, match=r"01-opening\.ipynb is not a notebook") as caught:
        run()
    assert "\n" not in str(caught.value)


def test_a_notebook_needs_a_parameters_cell(book, nothing_starts):
    nbformat.write(new_notebook(cells=[new_code_cell("x = 1")]), "nbs/01-opening.ipynb")
    with pytest.raises(KdsecError, match="no cell tagged 'parameters'"):
        run()


NO_JUPYTER = ("IPython", "ipykernel", "jupyter_client", "jupyter_core", "nbclient", "nbformat", "papermill")


@pytest.fixture
def no_jupyter(tmp_path, monkeypatch):
    """Take Jupyter away, here and from every process that is started."""
    hide = f"import sys\nsys.modules.update(dict.fromkeys({NO_JUPYTER!r}))"
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(hide)

    def apply():
        for name in NO_JUPYTER:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bare"))

    return apply


@pytest.mark.slow
def test_without_jupyter_the_record_is_the_same(book, no_jupyter, capfd):
    """What a cell defines has the same source for a fingerprint; what it shows does not disturb."""
    defined = """\
from __future__ import annotations
import dataclasses
from IPython.display import Markdown, display
import matplotlib.pyplot as plt
if seed < 0:
    %pip install nothing
@dataclasses.dataclass(frozen=True)
class Loss:
    weight: float = 0.5
    def __call__(self, outputs):
        return self.weight * outputs
def twice(x):
    return 2 * x
display(Markdown(f"device {device}"))
plt.plot([0, 1])
plt.show()"""
    record = """\
from kdsec.fingerprint import fingerprint
from kdsec.report import claims  # noqa: E402
from kdsec.report.records import Records
import os
records = Records("opening", profile, seed, "digits")
records.add("kd", fingerprint([Loss(), twice]), "accuracy", 0.5, queries=overrides["queries"][0])
records.save(out, {"recipe": os.environ.get("KDSEC_RECIPE"), "overrides": list(overrides["queries"])})"""
    book(defined, record=record)
    asked = {"overrides": {"queries": (7, 9)}}
    assert run(out="one", **asked)[0].status == "done"
    no_jupyter()
    pathlib.Path("two/quick/opening").mkdir(parents=True)
    pathlib.Path("two/quick/opening/seed0.ipynb").touch()
    assert run(out="one", **asked)[0].status == "resumed", "a page is neither asked for nor looked at"
    assert run(out="two", **asked)[0].status == "done"
    assert "no pages" in capfd.readouterr().err
    assert files("two/quick/opening") == ["seed0.csv", "seed0.json"], "a page that shows other numbers stayed"
    for name in files("two/quick/opening"):
        first, second = (pathlib.Path(folder, "quick/opening", name).read_text() for folder in ("one", "two"))
        assert first == second, name


def test_without_jupyter_a_failure_is_told_the_same(book, no_jupyter):
    book("if seed == 1:\n    raise ValueError('first\\nsecond')", record="raise SystemExit(3)")
    no_jupyter()
    left, raised = run(0, 1, jobs=2)
    assert left.reason == "failed: code cell 4 of 4 under 'The middle', `raise SystemExit(3)`: SystemExit: 3"
    told = "code cell 3 of 4 under 'The middle', `if seed == 1:`: ValueError: first second"
    assert raised.reason == f"failed: {told}"
    assert files() == []


def test_a_process_that_leaves_slowly_does_not_disturb_the_next_run(book, no_jupyter):
    book("import atexit, time\n_ = atexit.register(time.sleep, 1)")
    no_jupyter()
    assert [each.status for each in run(0, 1, jobs=1)] == ["done", "done"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}'])
def test_without_jupyter_a_damaged_notebook_is_named(book, nothing_starts, no_jupyter, text):
    pathlib.Path("nbs/01-opening.ipynb").write_text(text)
    no_jupyter()
    with pytest.raises(KdsecError, match=r"01-opening\.ipynb is not a notebook"):
        run()


def test_no_run_is_begun_when_the_time_is_over(book, instantly, monkeypatch):
    finish = runner.Launcher.run

    def take_a_while(self, job):
        time.sleep(0.1)
        return finish(self, job)

    monkeypatch.setattr(runner.Launcher, "run", take_a_while)
    first, second = run(0, 1, minutes=0.05 / 60)
    assert (first.status, second.status) == ("done", "left") and "goes on from here" in second.reason
    assert [each.status for each in run(0, 1, minutes=5)] == ["resumed", "done"]
    assert executions() == ["0", "1"]


def record_claims(job):
    """A record with every number that the claims of its chapter ask for."""
    settings = chapters.settings(job.chapter, job.profile)
    records = Records(job.chapter, job.profile, job.seed, "digits")
    for claim in claims.papers()[job.chapter].claims:
        for quantity in filter(None, (claim.first, claim.second)):
            names = (quantity.arm, quantity.model or "net", quantity.metric, quantity.setting)
            arm, model, metric, setting = (claims._fill(name, settings) for name in names)
            pairs = dict(part.split("=") for part in setting.split(";") if part)
            with contextlib.suppress(KdsecError):  # several claims ask for it
                records.add(arm, model, metric, 0.5 + job.seed / 7, **pairs)
    records.save(job.out, {"recipe": job.recipe})


def test_the_widest_gaps_of_the_scoreboard_come_first(tmp_path):
    """First what is not yet run anywhere, most claims first; then chapter by chapter to three seeds."""

    everything = plan.plan([], "paper", [0, 1, 2, 3], out=tmp_path)

    def todo(*seeds):
        return [job for job in everything if job.seed in seeds and not job.final(".json").exists()]

    def order(jobs):
        return [(job.chapter, job.seed) for job in plan.widest_gaps_first(jobs)]

    board = [each.claim.chapter for each in claims.scoreboard("paper", folder=tmp_path)]
    ranked = sorted(CHAPTERS, key=lambda name: -board.count(name))
    assert ranked != list(CHAPTERS), "this says nothing where the book's order is that of the gaps"
    rest = [(name, seed) for name in ranked for seed in (1, 2)]
    assert order(todo(0, 1, 2)) == [*((name, 0) for name in ranked), *rest]

    most = ranked[0]
    record_claims(next(job for job in todo(0) if job.chapter == most))
    verdicts = [each.verdict for each in claims.scoreboard("paper", [most], tmp_path)]
    assert claims.NOT_RUN not in verdicts
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


def test_the_recipe_covers_the_package_but_not_its_drivers():
    package = pathlib.Path(plan.PACKAGE)
    assert not plan._is_bystander(package / "train.py")
    assert not plan._is_bystander(package / "models" / "__init__.py")
    assert plan._is_bystander(package / "cli.py")
    assert plan._is_bystander(package / "chapters" / "crossing.py")
    assert all((package / name).exists() for name in plan.DRIVERS)


def test_the_recipe_covers_what_a_chapter_imports_and_no_more():
    cells = ["%pip install x\nfrom kdsec.defenses.stingy import Stingy", "from kdsec import distill"]
    behind = {str(file.relative_to(plan.PACKAGE)) for file in plan._code_behind("opening", cells)}
    assert {"defenses/stingy.py", "distill.py", "chapters/opening.py", "models/resnet.py"} <= behind
    assert not behind & {"defenses/nasty.py", "attacks/evasion.py", "chapters/__init__.py", "cli.py"}


def test_describe_names_the_nearest_heading():
    cells = [new_markdown_cell("# A\ntext\n## B"), new_code_cell("# why\n\nx = 1"), new_markdown_cell("t")]
    book = new_notebook(cells=[*cells, new_code_cell("y")])
    assert notebook.describe(book, 1) == (1, 2, "B") and notebook.describe(book, 3) == (2, 2, "B")
    assert notebook.first_line(cells[1].source) == "x = 1"


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


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("kind", "jupyter"),
    [
        (signal.SIGINT, True),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, False, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_leaves_nothing_and_is_taken_up_again(book, tmp_path, no_jupyter, kind, jupyter):
    flag, pid = tmp_path / "slow", tmp_path / "pid"
    book(WAIT.format(flag=str(flag), pid=str(pid)))
    flag.touch()
    if not jupyter:
        no_jupyter()
    command = [sys.executable, "-m", "kdsec", "run", "opening", "--seeds", "0,1"]
    process = subprocess.Popen(
        [*command, "--out", "out", "--notebooks", "nbs"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # Where these tests run in the background, a shell may have told them to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        until(lambda: pid.exists() and pid.read_text(), "the kernel never reached the slow cell")
        kernel = int(pid.read_text())
        assert alive(kernel)
        process.send_signal(kind)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    until(lambda: not alive(kernel), "the kernel survived")
    until(lambda: not list(pathlib.Path("out/quick/opening").glob(".*")), "the staging folder stayed")
    assert files() == ["seed0.csv", *(["seed0.ipynb"] if jupyter else []), "seed0.json"]
    if kind != signal.SIGKILL:
        assert process.returncode == 130
        last = errors.strip().splitlines()[-1]
        assert (
            last.startswith("kdsec: error: interrupted (1 of 2 runs finished") and "Traceback" not in errors
        )
    flag.unlink()
    assert [each.status for each in run(0, 1)] == ["resumed", "done"]
    assert recipe_of("out", "quick", "opening", 1)
