"""A Slurm of two nodes on this machine, from Debian's packages, for the tests; nothing of it outlives them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAMS = ("setpriv", "munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
ETC = Path("/etc/slurm")  # the only place where the steps of Snakemake's jobs look for slurm.conf
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")  # the only one that all of Slurm's programs look for
MARK = "BECO_TEST_CLUSTER"  # in the environment of the daemons and of their jobs, so that all can be found again

SLURM_CONF = """
ClusterName=beco
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
MinJobAge=300
GresTypes=gpu
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = """
NodeName=n0 Name=gpu Count=1 File=/dev/tty1
NodeName=n1 Name=gpu Count=1 File=/dev/tty2
"""  # for a GPU that nobody computes on any character device will do


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ask(*command: str) -> str:
    """What a client prints; one waits for ever where the controller does not answer."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def foreign(configuration: Path) -> bool:
    """Whether it is another Slurm's, and not what tests that were killed have left."""
    ours = configuration.is_symlink() and (configuration.resolve().parent / "munge.key").exists()
    return configuration.exists() and not ours


class Cluster:
    """munged, slurmctld and two slurmd while it is entered, their files in `folder`; skips where that cannot be.

    Commands that submit jobs want `environment` over their own.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            pytest.skip(f"no {missing[0]} on this machine (apt-get install slurm-wlm munge)")
        if os.geteuid() != 0:
            pytest.skip("only root can start a Slurm for other users' jobs, and /etc/slurm is root's")
        if foreign(ETC / "slurm.conf") or subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
            pytest.skip("this machine belongs to a Slurm already")
        self.folder = folder
        self.environment = {MARK: str(folder)}
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.links = [ETC / "slurm.conf", ETC / "gres.conf"]

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for name in ("state", "spool.n0", "spool.n1"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        MUNGE_SOCKET.parent.mkdir(parents=True, exist_ok=True)
        files = {"key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed", "log-file": "munged.log"}
        self._daemon("munged", "--foreground", "--force", *(f"--{key}={self.folder}/{files[key]}" for key in files))
        ETC.mkdir(exist_ok=True)
        values = {"folder": self.folder, "ports": free_ports(3), "host": socket.gethostname()}
        for link, text in zip(self.links, (SLURM_CONF, GRES_CONF), strict=True):
            (self.folder / link.name).write_text(text.format(**values))
            link.unlink(missing_ok=True)
            link.symlink_to(self.folder / link.name)
        self._until(lambda: ask("munge", "-n") != "")
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n0", "n1"):
            self._daemon("slurmd", "-D", "-N", node)
        self._until(lambda: ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])

    def _daemon(self, *command: str) -> None:
        command = ("setpriv", "--pdeathsig", "TERM", *command)  # if the tests are killed, it ends with them
        with (self.folder / f"{command[3]}.out").open("ab") as output:
            self.daemons.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | self.environment
                )
            )

    def _until(self, holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            ended = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            assert not ended, f"{ended}: ended, see {self.folder}"
            try:
                if holds():
                    return
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                pass  # nobody answers yet
            time.sleep(0.2)
        raise AssertionError(f"Slurm did not start within a minute, see {self.folder}")

    def __exit__(self, *error: object) -> None:
        for daemon in reversed(self.daemons):  # munged last: the others need it to part
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended by itself meanwhile
        for link in self.links:
            if link.is_symlink():
                link.unlink()

    def processes(self) -> list[int]:
        """Every process of this cluster and of its jobs; slurmstepd has no environment, but keeps its log open."""
        found, mark = [], f"{MARK}={self.folder}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                opened = []
                for one in (entry / "fd").iterdir():
                    with suppress(OSError):  # closed meanwhile
                        opened.append(str(one.readlink()))
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                if marked or any(name.startswith(f"{self.folder}/") for name in opened):
                    found.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile
        return found
