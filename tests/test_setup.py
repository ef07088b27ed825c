"""The files that set the project up agree with each other, and with what is installed."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib
import types
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import kdsec
from kdsec.chapters import CHAPTERS
from tests import checkout, colab

ROOT = checkout.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _sync() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("book_sync", ROOT / "book" / "sync.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sync = _sync()


def _constraints() -> dict[str, Version]:
    lines = [line for line in _read("constraints.txt").splitlines() if line and line[0] != "#"]
    found = {}
    for line in lines:
        name, _, version = line.partition("==")
        assert version, f"constraints.txt: {line!r} is not of the form name==version"
        found[canonicalize_name(name)] = Version(version)
    assert len(found) == len(lines), "constraints.txt names a package twice"
    return found


def _makefile(variable: str) -> str:
    found = re.search(rf"^{variable} := (.*)$", _read("Makefile"), re.MULTILINE)
    assert found, f"Makefile sets no {variable}"
    return found.group(1)


def _direct() -> list[Requirement]:
    # Not ``attacks`` and ``cluster``: what they drag in must not reach people who do not ask for it.
    lists = [PROJECT["dependencies"], *(EXTRAS[name] for name in _makefile("EXTRAS").split(","))]
    return [Requirement(text) for group in lists for text in group]


def _cluster() -> list[Requirement]:
    return [Requirement(text) for text in EXTRAS["cluster"]]


@pytest.mark.parametrize("requirement", [*_direct(), *_cluster()], ids=str)
def test_direct_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    pinned = _constraints().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement.name} has no line in constraints.txt"
    assert requirement.specifier.contains(pinned), f"{requirement} does not allow {pinned}"


@pytest.mark.parametrize("requirement", [*_direct(), *_cluster()], ids=str)
def test_pinned_version_is_the_one_these_tests_run_with(requirement: Requirement) -> None:
    if requirement in _cluster():
        pytest.importorskip("snakemake", reason="the extra `cluster` is not installed")
    installed = Version(importlib.metadata.version(requirement.name))
    # A build tag (2.9.0+cpu) is the same release on another device.
    assert Version(installed.public) == _constraints()[canonicalize_name(requirement.name)]


def test_conda_installs_the_same_set_as_make() -> None:
    environment = yaml.safe_load(_read("environment.yml"))
    *conda, pip = environment["dependencies"]
    assert conda == ["python>=3.11,<3.14", "pip"]
    assert pip == {"pip": ["-c constraints.txt", f"-e .[{_makefile('EXTRAS')}]"]}
    assert set(_makefile("EXTRAS").split(",")) == set(EXTRAS) - {"attacks", "cluster"}


def test_binder_installs_what_a_chapter_needs_and_nothing_else() -> None:
    environment = yaml.safe_load(_read(".binder/environment.yml"))
    conda_names = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}
    found = {
        (conda_names.get(each.name, each.name), str(each.specifier))
        for each in map(Requirement, environment["dependencies"])
        if each.name not in ("python", "pip")
    }
    needed = map(Requirement, PROJECT["dependencies"] + EXTRAS["run"])
    assert found == {(each.name, str(each.specifier)) for each in needed}


def test_python_versions_agree_everywhere() -> None:
    supported = _makefile("SUPPORTED").split()
    oldest, newest = supported[0], supported[-1]
    classified = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python ::" in line]
    assert classified == supported
    assert PROJECT["requires-python"] == f">={oldest}"
    after = f"3.{int(newest.partition('.')[2]) + 1}"
    for name in ("environment.yml", ".binder/environment.yml"):
        assert f"python>={oldest},<{after}" in yaml.safe_load(_read(name))["dependencies"]
    workflow = yaml.safe_load(_read(".github/workflows/test.yml"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [oldest, newest]
    assert f"Python {oldest} to {newest}" in _read("README.md")
    assert f"Python {', '.join(supported[:-1])} or {newest}" in _read("book/how-to-run.md")
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in supported


def test_versions_agree() -> None:
    citation = yaml.safe_load(_read("CITATION.cff"))
    assert citation["version"] == kdsec.__version__


def test_repository_address_stands_in_one_place() -> None:
    address = sync.repository()
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address)
    owner = address.removeprefix("https://")
    holders = [
        str(path.relative_to(ROOT))
        for path in checkout.files()
        if path.suffix != ".ipynb" and owner in path.read_text(encoding="utf-8", errors="ignore")
    ]
    assert holders == ["_config.yml"]


def test_book_lists_every_chapter_in_order() -> None:
    toc = yaml.safe_load(_read("_toc.yml"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    listed = [name for name in files if name.startswith("notebooks/")]
    chapters = sorted(CHAPTERS.values(), key=lambda chapter: chapter.number)
    assert listed == [f"notebooks/{chapter.notebook[:-6]}" for chapter in chapters]
    for name in set(files) - set(listed):
        assert (ROOT / "book" / f"{name}.md").is_file()


def test_every_chapter_has_its_notebook() -> None:
    found = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert found == {chapter.notebook for chapter in CHAPTERS.values()}


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_stored_notebook_is_in_the_form_that_sync_writes(path: pathlib.Path) -> None:
    assert sync.faults(nbformat.read(path, as_version=4)) == []


def _stored() -> Any:
    """A small notebook in the stored form."""
    v4 = nbformat.v4
    figure = v4.new_output(
        "display_data",
        {"image/png": "iVBORw0KGgo=", "text/html": "<b>made live</b>", "text/plain": "<Figure>"},
        metadata={"image/png": {"alt": "a line"}},
    )
    table = v4.new_output("display_data", {"text/html": "<b>table</b>", "text/plain": "table"})
    warning = v4.new_output("stream", name="stderr", text="warning")
    prints = [v4.new_output("stream", name="stdout", text=text) for text in ("one\n", "two\n")]
    cells = [
        v4.new_markdown_cell("# Title"),
        v4.new_code_cell("profile = 'quick'", metadata={"tags": ["parameters"], "papermill": {"x": 1}}),
        v4.new_code_cell("draw()", outputs=[figure, *prints, table, warning]),
    ]
    notebook = sync.with_first_cell(v4.new_notebook(cells=cells, metadata={"papermill": {"duration": 3}}))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
    return sync.text_only(notebook)


def test_stored_form_keeps_text_and_drops_the_rest() -> None:
    stored = _stored()
    text = nbformat.writes(stored)
    assert "<Figure>" in text and "a line" in text and '"parameters"' in text and "<b>table</b>" in text
    for gone in ("iVBOR", "made live", "papermill", "stderr"):
        assert gone not in text
    printed = [out.text for out in stored.cells[-1].outputs if out.output_type == "stream"]
    assert printed == ["one\ntwo\n"]  # however the kernel cut it up
    nbformat.validate(stored)
    assert sync.faults(stored) == []


def test_first_cell_is_put_in_once() -> None:
    stored = _stored()
    assert nbformat.writes(sync.with_first_cell(stored)) == nbformat.writes(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert sync.repository() in code[0].source
    assert code[0].metadata["tags"] == ["colab", "remove-cell"]


def test_every_departure_from_the_stored_form_is_found() -> None:
    def changed(change: Any) -> list[str]:
        notebook = copy.deepcopy(_stored())
        change([cell for cell in notebook.cells if cell.cell_type == "code"])
        return sync.faults(notebook)

    def other_first_cell(code: Any) -> None:
        code[0].source = code[0].source.replace("--no-deps", "")

    def not_executed(code: Any) -> None:
        code[1].execution_count = None

    def out_of_order(code: Any) -> None:
        code[1].execution_count, code[2].execution_count = 3, 2

    def figure(code: Any) -> None:
        code[2].outputs[0].data["image/png"] = "iVBORw0KGgo="

    assert any("first code cell" in fault for fault in changed(other_first_cell))
    assert any("not been executed in order" in fault for fault in changed(not_executed))
    assert any("not been executed in order" in fault for fault in changed(out_of_order))
    assert any("holds figures" in fault for fault in changed(figure))


def test_first_cell_installs_only_what_is_missing() -> None:
    """On a Colab that lacks kdsec and tqdm, two packages are asked for; where kdsec is installed, none."""
    source = sync.FIRST_CELL.format(url="URL")
    before, magic, arguments = source.partition("    %pip ")
    assert magic and "\n" not in arguments
    template = arguments.replace('{" ".join(missing)}', "{0}")

    def asked(absent: set[str]) -> list[str]:
        calls: list[str] = []
        code = f"{before}    calls.append({template!r}.format(' '.join(missing)).strip())"
        code = code.replace("from importlib.util import find_spec", "")
        exec(code, {"find_spec": lambda name: None if name in absent else name, "calls": calls})
        return calls

    assert asked(set()) == []
    assert asked({"kdsec"}) == ["install -q --no-deps git+URL"]
    assert asked({"kdsec", "tqdm", "sklearn"}) == ["install -q --no-deps git+URL tqdm scikit-learn"]
    lists = re.findall(r"needed \+?= \[(.*)\]", source)
    names = re.findall(r'"(\w+)"', " ".join(lists))
    needed = {name.replace("sklearn", "scikit-learn") for name in names}
    assert needed == {Requirement(text).name for text in PROJECT["dependencies"]}


@pytest.mark.parametrize("needed", [Requirement(text) for text in PROJECT["dependencies"]], ids=str)
def test_colab_holds_what_the_package_asks_for(needed: Requirement) -> None:
    """The first cell installs kdsec without looking at its ranges, so nothing would say so on Colab."""
    held = colab.required()[canonicalize_name(needed.name)]
    for pinned in held.specifier:
        assert needed.specifier.contains(pinned.version), f"Colab has {held}"


def test_notebooks_run_in_the_interpreter_of_these_tests() -> None:
    """A kernel of the same name in the user's home must not be the one that nbval and papermill start."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    assert pathlib.Path(manager.format_kernel_cmd()[0]) == pathlib.Path(sys.executable)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no-such-python", "no-such-python not found"),
        ("PYTHON_3_9", "is Python 3.9; kdsec needs one of: 3.11 3.12 3.13"),
    ],
)
def test_make_names_a_python_that_will_not_do(given: str, message: str, tmp_path: pathlib.Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(_read(name))
    if given == "PYTHON_3_9":
        fake = tmp_path / "python3.9"
        fake.write_text("#!/bin/sh\necho 3.9\n")
        fake.chmod(0o755)
        given = str(fake)
    command = ["make", "-C", str(tmp_path), "--no-print-directory", f"PYTHON={given}", "setup"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("pip_works", [False, True])
def test_interrupted_install_is_taken_up_again(pip_works: bool, tmp_path: pathlib.Path) -> None:
    """The stamp appears after an install that succeeded, never after one that did not."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(_read(name))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase "$*" in *install*) exit {0 if pip_works else 1};; esac\n')
    python.chmod(0o755)
    command = ["make", "-C", str(tmp_path), f"PYTHON={sys.executable}", "setup"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is pip_works
    assert (tmp_path / ".venv" / "kdsec-installed").exists() is pip_works
