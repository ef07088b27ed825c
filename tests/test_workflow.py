"""The workflow for clusters: what it plans, and what a real SLURM that loses a node makes of it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

if os.environ.get("KDSEC_REQUIRE_SLURM") == "1":
    import snakemake  # noqa: F401
else:
    pytest.importorskip("snakemake", reason="needs Snakemake: pip install '.[cluster]'")
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from snakemake.cli import main

from kdsec.planning import plan
from kdsec.report.records import Records, location
from kdsec.runner import run_chapters
from tests.slurm import cluster

ROOT = pathlib.Path(__file__).resolve().parents[1]
SNAKEFILE = str(ROOT / "workflow" / "Snakefile")


def profile(name: str) -> str:
    return str(ROOT / "workflow" / "profiles" / name)


def snakemake_here(*arguments: str) -> int:
    """The exit status of `snakemake` in this process and folder, which saves starting another one.

    In a thread: it wants an event loop of its own, and tests with a browser leave theirs running in this one.
    """
    with ThreadPoolExecutor(1) as thread, pytest.raises(SystemExit) as ended:
        thread.submit(main, ["--snakefile", SNAKEFILE, *arguments]).result()
    return int(ended.value.code or 0)


def recorded(job, recipe):
    records = Records(job.chapter, job.profile, job.seed, "digits")
    records.add("kd", "net", "accuracy", 0.5)
    return records.save("results", {"recipe": recipe})


def test_the_plan_holds_what_was_asked_for_and_is_not_done(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    done, stale, *_ = plan(["opening"], "quick", [0, 1])
    recorded(done, done.recipe)
    recorded(stale, "of older code")
    asked = ["chapters=opening,crossing", "profiles=quick,small", "seeds=0-1,3", "device=cuda"]
    assert snakemake_here("--profile", profile("slurm"), "--dry-run", "--config", *asked) == 0
    text = capfd.readouterr().out
    jobs = re.findall(r"rule (run|renew):.*?wildcards: ([^\n]*)\n.*?resources: ([^\n]*)", text, re.DOTALL)
    found = {
        tuple(re.findall(r"(?:profile|chapter|seed)=([\w-]+)", wild)): (rule, used)
        for rule, wild, used in jobs
    }
    wanted = {
        (scale, chapter, seed)
        for scale in ("quick", "small")
        for chapter in ("opening", "crossing")
        for seed in "013"
    }
    assert len(jobs) == len(found) and set(found) == wanted - {("quick", "opening", "0")}
    assert [key for key, (rule, _) in found.items() if rule == "renew"] == [("quick", "opening", "1")]
    assert all("gpu=1" in used and "runtime=720" in used for _, used in found.values())
    assert sorted(path.name for path in tmp_path.glob("results/quick/*/*")) == sorted(
        f"seed{seed}.{kind}" for seed in (0, 1) for kind in ("csv", "json")
    ), "a plan changed something"


MISTAKES = {
    "chapters=opning": "did you mean 'opening'",
    "profiles=quick,medium": "choose from: quick, small, second, paper",
    "seeds=": "not a list of whole numbers",
    "seeds=[]": "not a list of whole numbers",
    "seeds=0,0": "0 is given twice",
    "device=tpu": "choose from: auto, cpu, cuda",
    "gpus=some": "whole number",
    "set=alpha=0.5": "another folder",
    "out=": "variable of the shell",
    "seed=1": "did you mean 'seeds'",
}


@pytest.mark.parametrize("setting", MISTAKES)
def test_a_mistake_is_one_line(setting, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    chapters = [] if setting.startswith("chapters") else ["chapters=opening"]
    assert snakemake_here("--cores", "1", "--dry-run", "--config", setting, *chapters) == 2
    text = capfd.readouterr().err
    assert re.search(r"^kdsec: error: [^\n]*" + re.escape(MISTAKES[setting]), text, re.MULTILINE)
    assert (
        "Traceback" not in text
        and "Error in" not in text
        and text.rstrip().splitlines()[-1].startswith("kdsec:")
    )


@pytest.mark.parametrize("name", ["local", "slurm", "kubernetes"])
def test_every_profile_is_understood(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDSEC_CACHE", "c")
    monkeypatch.setenv("KDSEC_DATA", "d")
    assert snakemake_here("--profile", profile(name), "--dry-run", "--config", "chapters=opening") == 0
    assert re.search(r"^run +1$", capfd.readouterr().out, re.MULTILINE)


# Two nets of the opening chapter, trained shortly. Between them seed 1 waits as long as the flag lies there.
CELLS = """\
profile = "quick"
seed = 0
device = "auto"
out = None
overrides = {}
---
import dataclasses, os, pathlib, time
from kdsec.run import start
run = start("opening", profile=profile, seed=seed, device=device, out=out, overrides=overrides)
recipe = dataclasses.replace(run.settings.recipe, epochs=3)
teacher = run.fit("teacher", run.build(run.settings.teacher), run.data.train, recipe)
_ = run.score("teacher", run.settings.teacher, teacher)
---
flag = pathlib.Path(FLAG)
while seed == 1 and flag.exists():
    flag.with_name("node").write_text(os.environ["SLURMD_NODENAME"])
    time.sleep(0.2)
---
student = run.fit("student", run.build(run.settings.student), run.data.train, recipe)
_ = run.score("student", run.settings.student, student)
---
run.finish()"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """The folder `notebooks`, with the chapter above; the test runs in its parent. Gives the flag."""
    monkeypatch.chdir(tmp_path)
    flag = tmp_path / "flag"
    parameters, *others = CELLS.replace("FLAG", repr(str(flag))).split("\n---\n")
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, others)]
    (tmp_path / "notebooks").mkdir()
    write(new_notebook(cells=cells), tmp_path / "notebooks" / "01-opening.ipynb")
    return flag


def workflow(*options, out, environment=None):
    """A process of the workflow that runs two seeds of the chapter into ``out``."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        SNAKEFILE,
        *options,
        "--config",
        "chapters=opening",
    ]
    command += ["seeds=0-1", f"out={out}", "notebooks=notebooks", "threads=1", "device=cpu"]
    environment = {
        **(environment or os.environ),
        "PYTHONPATH": str(ROOT),
        "KDSEC_CACHE": str(pathlib.Path(f"cache-{out}").absolute()),
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def record(out, seed, kind=".csv"):
    return location(out, "quick", "opening", seed, kind).read_text()


def serial(monkeypatch):
    """The same runs one after the other, without workflow or cluster and from a cache of their own."""
    monkeypatch.setenv("KDSEC_CACHE", str(pathlib.Path("cache-serial").absolute()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcomes = run_chapters(["opening"], "quick", [0, 1], device="cpu", out="serial", notebooks="notebooks")
    assert [each.status for each in outcomes] == ["done", "done"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_one_machine_what_is_done_stays_and_what_is_old_is_renewed(book, monkeypatch):
    serial(monkeypatch)
    local = ["--profile", profile("local"), "--cores", "2"]

    def status_and_output(*options):
        process = workflow(*local, *options, out="wf")
        said, _ = process.communicate()
        return process.returncode, said

    status, said = status_and_output()
    assert status == 0, said
    assert [record("wf", seed) for seed in (0, 1)] == [record("serial", seed) for seed in (0, 1)]
    status, said = status_and_output()
    assert status == 0 and "rule all" in said and "rule run" not in said and "rule renew" not in said

    page = pathlib.Path("notebooks/01-opening.ipynb")
    page.write_text(page.read_text().replace("epochs=3", "epochs=2 // (1 - seed)"))  # fails for seed 1
    status, said = status_and_output("--retries", "0")
    assert status == 1, said
    assert record("wf", 0) != record("serial", 0), "a record of older code stayed"
    assert record("wf", 1) == record("serial", 1), "a renewal that failed took the record along"
    kept = {path.name for path in pathlib.Path("wf").rglob("*") if path.is_file()}
    kinds = ("csv", "json", "ipynb")
    assert kept == {"seed1.failed.ipynb", *(f"seed{seed}.{kind}" for seed in (0, 1) for kind in kinds)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_node_gives_the_records_of_a_serial_run(book, monkeypatch):
    serial(monkeypatch)
    book.touch()
    quick = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
    with cluster(nodes=2) as slurm:
        running = workflow(
            "--profile",
            profile("slurm"),
            *quick,
            "--seconds-between-status-checks",
            "2",
            out="shared",
            environment=slurm.environment,
        )
        try:
            slurm.until(lambda: pathlib.Path("node").exists(), "seed 1 never came to its middle", seconds=300)
            node = pathlib.Path("node").read_text()
            slurm.kill(node)
            book.unlink()
            said, _ = running.communicate(timeout=500)
        finally:
            running.kill()
    assert running.returncode == 0, said + slurm.logs()
    assert "NODE_FAIL" in said, said
    assert [record("shared", seed) for seed in (0, 1)] == [record("serial", seed) for seed in (0, 1)]
    trained = json.loads(record("shared", 1, ".json"))["training"]
    assert trained["from_cache"] == 1, "the net that was trained before the node was lost was trained again"
    assert not [
        path for path in pathlib.Path("shared").rglob("*") if ".part" in path.name or "failed" in path.name
    ]
