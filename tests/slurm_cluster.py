"""A Slurm of two nodes on this machine, from Debian's packages, for the tests; ended with the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
ETC = Path("/etc/slurm")  # the only place where Snakemake's job steps look
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")  # the only one that all of Slurm's programs look for

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
KillWait=30
GresTypes=gpu
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = """
NodeName=n0 Name=gpu Count=1 File=/dev/tty1
NodeName=n1 Name=gpu Count=1 File=/dev/tty2
"""  # any character device will do for a GPU that nobody computes on


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ask(*command: str) -> str:
    """Output of a client; they hang where the controller does not answer."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Cluster:
    """munged, slurmctld and two slurmd, their files in `folder`; skips the test where that cannot be."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in DAEMONS if shutil.which(name) is None]
        if missing:
            pytest.skip(f"no {missing[0]} here (apt-get install slurm-wlm munge)")
        if os.geteuid() != 0:
            pytest.skip("Slurm's daemons want to be started by root")
        if (ETC / "slurm.conf").exists() or MUNGE_SOCKET.exists():
            pytest.skip("this machine has a Slurm or a munged of its own")
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.made: list[Path] = [MUNGE_SOCKET]

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder = self.folder
        for name in ("state", "spool.n0", "spool.n1"):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        MUNGE_SOCKET.parent.mkdir(parents=True, exist_ok=True)
        files = [f"--key-file={key}", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"]
        self._daemon("munged", "--foreground", "--force", *files)
        values = {"folder": folder, "ports": free_ports(3), "host": socket.gethostname()}
        ETC.mkdir(exist_ok=True)
        for name, text in {"slurm.conf": SLURM_CONF, "gres.conf": GRES_CONF}.items():
            (folder / name).write_text(text.format(**values))
            (ETC / name).symlink_to(folder / name)
            self.made.append(ETC / name)
        self._until(MUNGE_SOCKET.exists)
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n0", "n1"):
            self._daemon("slurmd", "-D", "-N", node)
        self._until(lambda: ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.{len(self.daemons)}.out").open("wb") as output:
            self.daemons.append(subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL))

    def _until(self, holds) -> None:  # type: ignore[no-untyped-def]
        until = time.monotonic() + 60
        while True:
            dead = [daemon for daemon in self.daemons if daemon.poll() is not None]
            assert not dead, f"{dead[0].args}: ended, see {self.folder}"
            try:
                if holds():
                    return
            except (AssertionError, subprocess.TimeoutExpired):
                pass  # not answering yet
            assert time.monotonic() < until, f"Slurm did not start in a minute, see {self.folder}"
            time.sleep(0.2)

    def __exit__(self, *error: object) -> None:
        inside = self._jobs_processes()
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in inside:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for path in self.made:
            path.unlink(missing_ok=True)

    def _jobs_processes(self) -> list[int]:
        """What still runs of this cluster's jobs: processes below a slurmstepd whose environment names this cluster."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and b"\0SLURM_CLUSTER_NAME=beco\0" in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile
        return found
