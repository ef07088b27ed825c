"""A stand-in for Google Colab: its Python, the main packages of its machines, and its way to run a notebook.

The packages of ``colab.txt`` are installed once, into the user's cache: they are five gigabytes. A machine is
a virtual environment whose files are hard links to those. What is installed into it stays out of the cache,
since pip replaces files and does not write into them. The repository that the first cell installs from is a
copy of this checkout's files, which git is told (``url.<here>.insteadOf``) to take for the one on GitHub; so
the cell runs exactly as it stands.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import filelock
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import checkout

ROOT = checkout.ROOT
PACKAGES = ROOT / "tests" / "colab.txt"
PYTHON = "3.13"

# Of the surroundings of these tests nothing may help a notebook that would fail on Colab.
OURS = (
    "PYTHON",
    "KDSEC_",
    "VIRTUAL_ENV",
    "JUPYTER",
    "IPYTHON",
    "MPL",
    "PIP_TARGET",
    "PIP_CONSTRAINT",
    "GIT_",
)

# Asked in the notebook's own kernel after its first cells, which have made ``run``.
PROBE = """\
import json, os, platform, kdsec
from kdsec.config import PROFILES
from kdsec.report import claims, records
print(json.dumps({
    "python": platform.python_version(),
    "kdsec": os.path.dirname(kdsec.__file__),
    "images": len(run.data.train),
    "rows": {profile: len(records.recorded(None, profile)) for profile in PROFILES},
    "claims": len(claims.papers()),
}))"""


def interpreter() -> str:
    """Path of Colab's Python. Without one the test is skipped, or fails if KDSEC_REQUIRE_COLAB=1."""
    name = f"python{PYTHON}"
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    # The one on the PATH may be pyenv's shim, which answers only where that version is switched on.
    places = [shutil.which(name), *sorted(map(str, pyenv.glob(f"versions/{PYTHON}.*/bin/{name}")))]
    for place in places:
        if place and subprocess.run([place, "-c", "import venv"], capture_output=True).returncode == 0:
            return place
    reason = f"Colab has Python {PYTHON}; found none on the PATH and none of pyenv's"
    if os.environ.get("KDSEC_REQUIRE_COLAB") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def required() -> dict[str, Requirement]:
    """What ``colab.txt`` lists, by the packages' names."""
    lines = [line for line in PACKAGES.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def image(python: str) -> pathlib.Path:
    """Folder of an environment that holds Colab's packages and nothing else; built if it is not there yet."""
    about = subprocess.run([python, "-VV"], capture_output=True, check=True).stdout + PACKAGES.read_bytes()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kdsec-colab"
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"image-{hashlib.sha256(about).hexdigest()[:16]}"
    with filelock.FileLock(cache / "lock"):
        if not made.is_dir():
            for old in cache.glob("image-*"):
                shutil.rmtree(old)
            building = cache / "image-unfinished"
            subprocess.run([python, "-m", "venv", building], check=True)
            pip = [building / "bin" / "python", "-m", "pip", "--quiet", "--no-cache-dir", "install"]
            subprocess.run([*pip, "--only-binary=:all:", "-r", PACKAGES], env=surroundings(), check=True)
            building.rename(made)
    return made


def surroundings(**more: str) -> dict[str, str]:
    """The environment variables of this process without those that are the book's or these tests' own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | more


@dataclass(frozen=True)
class Machine:
    """A machine of Colab's, as a notebook finds it."""

    python: pathlib.Path
    packages: pathlib.Path  # its site-packages

    def versions(self) -> dict[str, str]:
        """Version of every package that is installed, by name."""
        found = importlib.metadata.distributions(path=[str(self.packages)])
        return {canonicalize_name(one.metadata["Name"]): one.version for one in found}

    def forget_kdsec(self) -> None:
        """Be again as a fresh machine is."""
        uninstall = [self.python, "-m", "pip", "uninstall", "--quiet", "--yes", "kdsec"]
        subprocess.run(uninstall, env=surroundings(), check=True)

    def run(self, cells: Sequence[str], folder: pathlib.Path, env: dict[str, str]) -> list[str]:
        """Run ``cells`` in ``folder`` through a kernel of this machine; gives what each printed.

        Raises:
            nbclient.exceptions.CellExecutionError: a cell raised.
        """
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        spec = self.python.parent.parent / "kernels" / "colab"
        spec.mkdir(parents=True, exist_ok=True)
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab"}))
        specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
        kernel = AsyncKernelManager(kernel_name="colab", kernel_spec_manager=specs)
        client = NotebookClient(notebook, km=kernel, timeout=600, shutdown_kernel="immediate")
        client.owns_km = True  # so that it ends the kernel, whatever happens
        client.execute(cwd=str(folder), env=env)
        streams = [
            [out.text for out in cell.outputs if out.get("name") == "stdout"] for cell in notebook.cells
        ]
        return ["".join(texts) for texts in streams]


@contextlib.contextmanager
def machine(image: pathlib.Path) -> Iterator[Machine]:
    """A machine with the packages of ``image``, gone afterwards."""
    # Beside the image, since hard links do not reach across file systems.
    with tempfile.TemporaryDirectory(prefix="machine-", dir=image.parent) as folder:
        home = pathlib.Path(folder)
        python = image / "bin" / "python"
        subprocess.run([python.resolve(), "-m", "venv", "--without-pip", home], check=True)
        packages = home / "lib" / f"python{PYTHON}" / "site-packages"
        held = image / "lib" / f"python{PYTHON}" / "site-packages"
        shutil.copytree(held, packages, copy_function=os.link, dirs_exist_ok=True)
        yield Machine(home / "bin" / "python", packages)


def copy_to(folder: pathlib.Path) -> None:
    """Copy the files of this checkout."""
    for path in checkout.files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def published(folder: pathlib.Path, address: str) -> dict[str, str]:
    """Commit what is in ``folder``; gives the variables with which git finds it at ``address``."""
    author = ["-c", "user.name=kdsec", "-c", "user.email=kdsec@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "as it stands"]):
        subprocess.run(["git", "-C", folder, *command], env=surroundings(), check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }


def faults(machine: Machine, before: dict[str, str], folder: pathlib.Path) -> list[str]:
    """What the first cell did to a machine that held ``before``, other than installing all of ``folder``."""
    after = machine.versions()
    found = [
        f"{name} was {old} and is {after.get(name, 'gone')}"
        for name, old in before.items()
        if after.get(name) != old
    ]
    found += [f"{name} was added" for name in sorted(after.keys() - before.keys() - {"kdsec"})]
    if "kdsec" not in after:
        return [*found, "kdsec was not installed"]
    places = {"kdsec": machine.packages / "kdsec", "results": machine.packages / "kdsec" / "_results"}
    for path in sorted(folder.rglob("*")):
        top, *rest = path.relative_to(folder).parts
        if top in places and path.is_file():
            there = places[top].joinpath(*rest)
            if not there.is_file() or there.read_bytes() != path.read_bytes():
                found.append(f"{path.relative_to(folder)} is not in the installed package")
    return found
