"""The files that set the project up agree with each other, and with what is installed."""

from __future__ import annotations

import copy
import pathlib
import re
import sys
import tomllib
from typing import Any

import address
import nbformat
import pytest
import sync
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError
from tests import checkout, colab

ROOT = checkout.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


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
    # Not ``attacks``: what it drags in must not reach people who do not ask for it.
    lists = [
        PROJECT["dependencies"],
        *(EXTRAS[name] for name in [*_makefile("EXTRAS").split(","), "cluster"]),
    ]
    return [Requirement(text) for group in lists for text in group]


@pytest.mark.parametrize("requirement", _direct(), ids=str)
def test_direct_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    pinned = _constraints().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement.name} has no line in constraints.txt"
    assert requirement.specifier.contains(pinned), f"{requirement} does not allow {pinned}"


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


ADDRESS = "https://git.example.org/owner/kdsec"


def test_the_repositorys_address_is_written_in_one_place_only() -> None:
    """In any other file it would be a stranger's account, or a second place to change."""
    mine = address.repository()
    named = re.compile(r"(?:git\+https?://|github\.com/|github\.io/|mybinder\.org/v2/)[\w./-]*kdsec[\w/]*")
    for path in checkout.files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        allowed = (mine,) if mine and path.suffix in (".ipynb", ".yml") else ()
        assert not [each for each in named.findall(text) if not mine or each not in allowed], path


@pytest.mark.parametrize(
    "wrong",
    ["kdsec", "git@host:owner/kdsec", "https://host/kdsec", "https://a/b/c --pre x", "https://a/b/{c}", 7],
)
def test_an_address_of_another_form_is_refused(wrong: Any) -> None:
    with pytest.raises(KdsecError, match=r"_config\.yml, repository, url: .*https://HOST/OWNER/NAME"):
        address.repository({"repository": {"url": wrong}})


def test_without_an_address_nothing_in_the_book_links_to_one() -> None:
    settings = address.config()
    settings["repository"]["url"] = settings["html"]["baseurl"] = ""
    text = yaml.safe_dump(address.linked(settings))
    for gone in (
        "colab",
        "mybinder",
        "opengraph",
        "ogp_",
        "github",
        "repository_button: true",
        "issues_button: true",
    ):
        assert gone not in text
    settings["repository"]["url"], settings["html"]["baseurl"] = ADDRESS, "https://book.example.org/"
    linked = address.linked(settings)
    assert linked["repository"]["url"] == ADDRESS and linked["launch_buttons"]["colab_url"]
    assert linked["sphinx"]["config"]["ogp_site_url"] == "https://book.example.org/"


@pytest.mark.parametrize(
    ("url", "opens"),
    [
        ("https://github.com/owner/name", f"{address.COLAB}/owner/name/blob/colab/01-opening.ipynb"),
        ("", ""),
        (ADDRESS, ""),  # Colab opens what is on GitHub
    ],
)
def test_colab_is_linked_where_it_can_open_the_edition(url: str, opens: str) -> None:
    assert address.colab("01-opening.ipynb", {"repository": {"url": url}}) == opens


def test_book_lists_every_chapter_in_order() -> None:
    toc = yaml.safe_load(_read("_toc.yml"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    listed = [name for name in files if re.fullmatch(r"notebooks/[^/]+", name)]
    chapters = sorted(CHAPTERS.values(), key=lambda chapter: chapter.number)
    assert listed == [f"notebooks/{chapter.notebook[:-6]}" for chapter in chapters]
    for name in set(files) - set(listed):
        folder, ending = (ROOT, "ipynb") if name.startswith("notebooks/more/") else (ROOT / "book", "md")
        assert (folder / f"{name}.{ending}").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.name)
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


@pytest.mark.parametrize("url", ["", ADDRESS])
def test_first_cell_is_put_in_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "repository", lambda: url)
    stored = _stored()
    assert nbformat.writes(sync.with_first_cell(stored)) == nbformat.writes(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert code[0].source == sync.first_cell(url)
    assert ("%pip install" in code[0].source and url in code[0].source) == bool(url)
    assert code[0].metadata["tags"] == ["colab", "remove-cell"]


def test_every_departure_from_the_stored_form_is_found() -> None:
    text = nbformat.writes(_stored())
    assert "<Figure>" in text and "<b>table</b>" in text and sync.faults(_stored()) == []
    assert not [gone for gone in ("iVBOR", "made live", "papermill", "stderr") if gone in text]

    def changed(change: Any) -> list[str]:
        notebook = copy.deepcopy(_stored())
        change([cell for cell in notebook.cells if cell.cell_type == "code"])
        return sync.faults(notebook)

    def other_first_cell(code: Any) -> None:
        code[0].source = code[0].source.replace("find_spec", "found")

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
    source = sync.first_cell("URL")
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


def test_without_an_address_the_first_cell_says_so_and_installs_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = sync.first_cell("").replace("from importlib.util import find_spec", "")
    exec(code, {"find_spec": lambda name: name})
    assert capsys.readouterr().out == ""
    exec(code, {"find_spec": lambda name: None})
    said = capsys.readouterr().out
    assert "address" in said and said.count("\n") == 1


@pytest.mark.parametrize("needed", [Requirement(text) for text in PROJECT["dependencies"]], ids=str)
def test_colab_holds_what_the_package_asks_for(needed: Requirement) -> None:
    """The first cell installs kdsec without looking at its ranges, so nothing would say so on Colab."""
    held = colab.required()[canonicalize_name(needed.name)]
    for pinned in held.specifier:
        assert needed.specifier.contains(pinned.version), f"Colab has {held}"
