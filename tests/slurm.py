"""A SLURM of one's own for a test: munged, slurmctld and nodes of one core each, all on this machine.

It needs Debian's packages ``slurm-wlm`` and ``munge``, neither root nor any file outside its folder.
A node is a slurmd; killing it kills what runs on it too, as if the power failed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scontrol",
    "scancel",
    "sinfo",
    "sacct",
)
SYSTEM = os.pathsep.join(
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
)  # where daemons lie; not on every user's PATH

CONFIGURATION = """\
ClusterName=kdsec
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=2
JobRequeue=0
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM)]


class Cluster:
    """Running daemons.

    Attributes:
        home: their folder, with logs.
        environment: what a command needs to talk to them.
        nodes: the names of the nodes.
    """

    def __init__(self, home: pathlib.Path, nodes: int) -> None:
        self.home = home
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # The configuration's place must reach srun inside a job too, and Snakemake drops SLURM_CONF there:
        # so commands of these names, earlier on the PATH, set it again.
        commands = home / "bin"
        commands.mkdir()
        for name in PROGRAMS:
            program = shutil.which(name, path=SYSTEM)
            script = commands / name
            script.write_text(f'#!/bin/sh\nSLURM_CONF={home}/slurm.conf exec {program} "$@"\n')
            script.chmod(0o755)
        path = os.pathsep.join([str(commands), os.environ["PATH"]])
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        self.environment = {**clean, "PATH": path, "KDSEC_TEST_SLURM": str(home)}

    def start(self) -> None:
        """Start everything, and wait until all nodes are idle."""
        (self.home / "munge.key").write_bytes(secrets.token_bytes(256))
        (self.home / "munge.key").chmod(0o400)
        (self.home / "state").mkdir()
        self._configure()
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "seed-file": "seed",
        }
        options = [f"--{name}={self.home / file}" for name, file in files.items()]
        self._daemon("munged", *options, f"--log-file={self.home}/munged.log", "--foreground", "--force")
        self.until(lambda: (self.home / "munge.socket").exists(), "munged did not start")
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node, name=node)
        self.until(lambda: self._states() == ["idle"] * len(self.nodes), "the nodes did not become idle")

    def command(self, *arguments: str) -> str:
        """The output of a command of SLURM's."""
        done = subprocess.run(arguments, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def kill(self, node: str) -> None:
        """End a node and all that runs on it at once, without a word to anyone."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        for _ in range(3):  # what was being started while the first round went through
            for pid in self._processes(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def stop(self) -> None:
        """End every daemon, and whatever a job has left running."""
        self.command("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
        for node in self._daemons.keys() & self.nodes:
            self.kill(node)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def logs(self) -> str:
        """The ends of all daemons' logs, for a test that failed."""
        files = sorted([*self.home.glob("*.log"), *self.home.glob("*.out")])
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-600:]}" for path in files)

    def _configure(self) -> None:
        free = [_free_port() for _ in range(len(self.nodes) + 1)]
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            port=free[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            home=self.home,
        )
        for node, port in zip(self.nodes, free[1:], strict=True):
            text += f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
            text += "CPUs=1 RealMemory=16000 Gres=gpu:1\n"
        text += f"PartitionName=all Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE\n"
        (self.home / "slurm.conf").write_text(text)
        (self.home / "gpu0").touch()  # SLURM counts device files; nobody opens this one
        (self.home / "gres.conf").write_text(f"Name=gpu File={self.home}/gpu0\n")
        (self.home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    def _daemon(self, program: str, *arguments: str, name: str = "") -> None:
        log = (self.home / f"{name or program}.out").open("wb")
        environment = {**self.environment, "SLURMD_NODENAME": name}
        command = [str(self.home / "bin" / program), *arguments]
        self._daemons[name or program] = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def _processes(self, node: str) -> list[int]:
        """What the node started, directly or not: all of it inherits the name of the node and ours."""
        marks = {f"SLURMD_NODENAME={node}".encode(), f"KDSEC_TEST_SLURM={self.home}".encode()}
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
        return found

    def _states(self) -> list[str]:
        return self.command("sinfo", "--noheader", "--Node", "--format=%t").split()

    def until(self, true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"{what}:\n{self.logs()}"
            time.sleep(0.3)


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """A running cluster, which is gone afterwards; skips where SLURM is not installed."""
    if absent := missing():
        reason = f"needs SLURM, Debian's slurm-wlm and munge; not here: {', '.join(absent)}"
        pytest.fail(reason) if os.environ.get("KDSEC_REQUIRE_SLURM") == "1" else pytest.skip(reason)
    # A short path, which sockets need; not pytest's own folder.
    with tempfile.TemporaryDirectory(prefix="kdsec-slurm-", ignore_cleanup_errors=True) as home:
        made = Cluster(pathlib.Path(home), nodes)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
