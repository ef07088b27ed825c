"""Every notebook begins on Colab as it should: a machine with Colab's packages, and kdsec from its wheel."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import nbformat
import pytest
import sync

from kdsec.config import PROFILES
from kdsec.report import claims, records
from tests import colab

# The first of these tests may install five gigabytes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# The address that the first cell installs from, whether or not the project has one already.
ADDRESS = "https://git.example.org/owner/kdsec"
NOTEBOOKS = sorted((colab.ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def image() -> pathlib.Path:
    return colab.image(colab.interpreter())


@pytest.fixture(scope="module")
def shared(image: pathlib.Path) -> Iterator[colab.Machine]:
    with colab.machine(image) as machine:
        yield machine


@pytest.fixture
def machine(shared: colab.Machine) -> Iterator[colab.Machine]:
    """A machine without kdsec. Linking and removing forty thousand files for each notebook takes minutes."""
    yield shared
    shared.forget_kdsec()


@pytest.fixture(scope="module")
def held(shared: colab.Machine) -> dict[str, str]:
    """The versions that the machine had before any notebook ran."""
    return shared.versions()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the checkout."""
    folder = tmp_path_factory.mktemp("source")
    colab.copy_to(folder)
    return folder


@pytest.fixture(scope="module")
def git(source: pathlib.Path) -> dict[str, str]:
    return colab.published(source, ADDRESS)


def _env(git: dict[str, str], folder: pathlib.Path) -> dict[str, str]:
    """What a kernel is told: where the repository is, and to find nothing of this user's in caches."""
    own = {"KDSEC_CACHE": str(folder / "cache"), "IPYTHONDIR": str(folder / "ipython")}
    return colab.surroundings(**git, **own)


def _content(folder: pathlib.Path) -> pathlib.Path:
    """An empty working folder, as Colab's /content is."""
    (folder / "content").mkdir()
    return folder / "content"


def _first_cells(path: pathlib.Path, trained: bool) -> list[str]:
    """The code cells before the first that trains, which sets the chapter and its data up; or with it."""
    notebook = nbformat.read(path, as_version=4)
    first, *code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert first == sync.first_cell(sync.repository())  # tests/test_edition.py: the edition has the same code
    code = [sync.first_cell(ADDRESS), *code]
    training = next(index for index, cell in enumerate(code) if "run.fit(" in cell)
    assert any("run = start(" in cell for cell in code[:training])
    return code[: training + trained]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_first_cells_run(
    path: pathlib.Path,
    machine: colab.Machine,
    held: dict[str, str],
    source: pathlib.Path,
    git: dict[str, str],
    tmp_path: pathlib.Path,
) -> None:
    cells = _first_cells(path, trained=path == NOTEBOOKS[0])
    assert not (machine.packages / "kdsec").exists()
    *_, answer = machine.run([*cells, colab.PROBE], _content(tmp_path), _env(git, tmp_path))
    assert colab.faults(machine, held, source) == []
    found = json.loads(answer)
    assert pathlib.Path(found["kdsec"]) == machine.packages / "kdsec"
    assert found["python"].startswith(f"{colab.PYTHON}.")
    assert found["images"] > 0
    assert found["rows"] == {profile: len(records.recorded(None, profile)) for profile in PROFILES}
    assert found["rows"]["small"] > 0
    assert found["claims"] == len(claims.papers()) > 0
