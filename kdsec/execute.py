"""Execute one chapter's notebook in a process of its own, so that it can be killed without harm.

The notebook runs in a hidden folder beside its final place and writes its record there. Only when every cell
has run are record and executed notebook moved to their final names. A run that fails leaves
``seed<k>.failed.ipynb``; a run that is killed leaves nothing that looks like a result.

The runner starts ``main`` with a pickled ``Job`` on standard input and reads events, one JSON object a line,
from standard output. Standard input stays open as a lifeline: when it closes, the runner is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kdsec import notebook, plain
from kdsec.errors import KdsecError
from kdsec.report.records import location, recipe_of

SOCKET_PATH_LIMIT = 90  # the system's limit is 104 or 108 bytes, and the kernel appends to the name
KERNEL_START_SECONDS = 300.0
Report = Callable[..., None]


@dataclass(frozen=True)
class Job:
    """One chapter at one profile and seed. Paths are absolute; ``scratch`` is the runner's to delete.

    ``page``: whether Jupyter executes it and keeps the executed notebook, or Python alone, for the record.
    ``shown``: fingerprint of what the page shows beside its own run, see ``kdsec.plan``.
    """

    chapter: str
    profile: str
    seed: int
    device: str
    overrides: dict[str, Any]
    notebook: pathlib.Path
    out: pathlib.Path
    scratch: pathlib.Path
    recipe: str
    page: bool = True
    shown: str | None = None

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.chapter} seed {self.seed}"

    def final(self, suffix: str) -> pathlib.Path:
        """Where a file of this run belongs: suffix ``.csv``, ``.json``, ``.ipynb``, ``.failed.ipynb``."""
        return location(self.out, self.profile, self.chapter, self.seed, suffix)

    @property
    def staging(self) -> pathlib.Path:
        """The folder it runs in, on the disk of its final place, so that moving there is atomic."""
        return self.final("").with_name(f".seed{self.seed}.part")

    @property
    def parameters(self) -> dict[str, Any]:
        """What its notebook is given; the kernel's working directory is the staging folder."""
        return {
            "profile": self.profile,
            "seed": self.seed,
            "device": self.device,
            "out": ".",
            "overrides": self.overrides,
        }


def main() -> None:
    """Entry point of the process."""
    job: Job = pickle.load(sys.stdin.buffer)
    # What the kernel or a library prints must not mix with the events: these get a descriptor of their own.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        kernel = _kernel(job) if job.page else None
        with claimed(job.staging), _dying_with_the_runner(job, kernel):
            failure = _execute(job, kernel, report)
    except KdsecError as error:
        failure = str(error)
    except OSError as error:
        path = error.filename or job.final(".csv")
        failure = f"cannot write {path}: {error.strerror}; free some space or choose another --out"
    report(failed=failure) if failure else report(done=True)


def _execute(job: Job, kernel: Any, report: Report) -> str:
    """Run the notebook and put its results in place; returns what went wrong, empty if nothing."""
    source = notebook.read(job.notebook)
    job.final(".failed.ipynb").unlink(missing_ok=True)
    os.chdir(job.staging)
    prepared, executed = pathlib.Path("prepared.ipynb"), pathlib.Path("executed.ipynb")
    if job.page:
        notebook.write(notebook.with_parameters(source, job.parameters), prepared)
        failure = _papermill(kernel, prepared, executed, report)
    else:
        failure = _plainly(source, job, report)
    if not failure and recipe_of(".", job.profile, job.chapter, job.seed) != job.recipe:
        failure = "the notebook ended without a record; its last cell must call run.finish()"
    if failure:
        if executed.exists():
            os.replace(executed, job.final(".failed.ipynb"))
        return failure
    if job.page:
        page = notebook.finished(source, notebook.read(executed), job.parameters, job.shown)
        notebook.write(page, executed)
    _publish(job, executed)
    return ""


def _papermill(kernel: Any, prepared: pathlib.Path, executed: pathlib.Path, report: Report) -> str:
    """Run the cells of ``prepared``, writing ``executed``; returns what went wrong, or nothing."""
    import papermill
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import DeadKernelError

    cells = notebook.read(prepared)
    at = 0

    def started(cell: Any, cell_index: int) -> None:
        nonlocal at
        if cell.cell_type == "code":
            at = cell_index
            _tell(cells, at, report)

    try:
        papermill.execute_notebook(
            str(prepared),
            str(executed),
            kernel_name=kernel.kernel_name,
            km=kernel,
            progress_bar=False,
            start_timeout=KERNEL_START_SECONDS,
            iopub_timeout=60,  # the default of 4 s is too short for a busy machine
            record_timing=False,
            coalesce_streams=True,  # how prints are cut into pieces depends on the clock
            on_cell_start=started,
        )
    except papermill.PapermillExecutionError as error:
        # The index counts cells of the notebook as papermill saw it, which is the prepared one.
        return _failure(cells, error.cell_index, _exception(error.ename, error.evalue))
    except DeadKernelError:
        return _failure(cells, at, "the kernel died, perhaps because memory ran out")
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)
    return ""


def _plainly(source: Any, job: Job, report: Report) -> str:
    """Run the cells in this process; returns what went wrong, or nothing."""
    try:
        plain.execute(source, job.parameters, lambda index: _tell(source, index, report))
    except plain.CellFailed as error:
        return _failure(source, error.index, _exception(error.kind, error.message))
    return ""


def _tell(cells: Any, index: int, report: Report) -> None:
    number, total, heading = notebook.describe(cells, index)
    report(cell=number, of=total, heading=heading)


def _failure(cells: Any, index: int, reason: str) -> str:
    number, total, heading = notebook.describe(cells, index)
    under = f" under {heading!r}" if heading else ""
    line = notebook.first_line(cells.cells[index].source)
    return f"code cell {number} of {total}{under}, `{line}`: {reason}"


def _exception(name: str, value: str) -> str:
    """One line. An error of ours says everything itself, any other needs its class."""
    message = " ".join(value.split())
    message = message if len(message) <= 400 else message[:400] + " ..."
    if name == KdsecError.__name__:
        return message
    return f"{name}: {message}" if message else name


def _kernel(job: Job) -> Any:
    """A kernel that is this very interpreter, whatever kernels are installed under whatever names.

    It is reached through files where the system can: TCP ports of parallel kernels may clash.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name=kernel_name, language="python")

    connection = job.scratch / "kernel.json"
    files = os.name == "posix" and len(os.fsencode(connection)) < SOCKET_PATH_LIMIT
    return AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=ThisPython(),
        connection_file=str(connection),
        transport="ipc" if files else "tcp",
    )


@contextlib.contextmanager
def _dying_with_the_runner(job: Job, kernel: Any) -> Iterator[None]:
    """On SIGTERM, or when the runner disappears, kill the kernel and its children and leave nothing behind.

    (Should this process be killed outright, the kernel notices within a second and ends itself.)
    """

    def stop(*_: Any) -> None:
        group = getattr(getattr(kernel, "provisioner", None), "pgid", None)
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        shutil.rmtree(job.staging, ignore_errors=True)
        shutil.rmtree(job.scratch, ignore_errors=True)
        os._exit(130)

    def watch() -> None:
        sys.stdin.buffer.read()
        if over.is_set():
            return  # the runner closes it too, when it has heard the end; Python may take a while to leave
        shutil.rmtree(job.scratch.parent, ignore_errors=True)  # the runner can no longer
        os.kill(os.getpid(), signal.SIGTERM)

    over = threading.Event()
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _publish(job: Job, executed: pathlib.Path) -> None:
    """Move the results into place, the json last: until it is there, the run counts as not done."""
    staged = location(".", job.profile, job.chapter, job.seed, ".csv")
    job.final(".json").unlink(missing_ok=True)
    os.replace(staged, job.final(".csv"))
    if job.page:
        os.replace(executed, job.final(".ipynb"))
    else:
        job.final(".ipynb").unlink(missing_ok=True)  # of an earlier run: it shows other numbers
    os.replace(staged.with_suffix(".json"), job.final(".json"))


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """Hold ``folder``, empty, for this process alone, and delete it afterwards.

    A folder that a killed run left behind is taken over; its lock died with it.

    Raises:
        KdsecError: another process is running the same chapter, profile and seed into the same place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder)
    try:
        for item in folder.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _lock(folder: pathlib.Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise KdsecError(
            "another process is running it right now; wait for that, or choose another --out"
        ) from None
    except OSError:
        pass  # a file system without locks
    return handle
