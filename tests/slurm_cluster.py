"""A real SLURM cluster of two nodes on this machine: daemons in one folder, on free ports, ended with the test.

    python -m tests.slurm_cluster        starts one and opens a shell in it

Needs SLURM's daemons and munge, on Debian: apt-get install slurm-wlm munge.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
KillWait=10
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """The reason why no cluster can run here; "" if one can."""
    absent = [program for program in PROGRAMS if _path(program) is None]
    if absent:
        return f"SLURM is not installed here ({', '.join(absent)} missing)"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root to start tasks"


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start a cluster; gives the environment in which SLURM's commands reach it."""
    # A socket's path may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    folder.chmod(0o755)
    daemons: list[subprocess.Popen] = []
    *ports, main_port = _free_ports(4)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    # The nodes' names do not resolve, and a job's default port may be taken by another job of this machine.
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(main_port)}
    try:
        _write_files(folder, ports)
        munge = ["--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
        munge += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
        commands = [["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
        for name, *arguments in commands:
            log = (folder / f"{name}.out").open("a")
            command = [_path(name), *arguments]
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
            if name == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: _idle_nodes(environment) == {"n1", "n2"}, folder)
        yield environment
    finally:
        _cancel_all(environment)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _path(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _write_files(folder: Path, ports: list[int]) -> None:
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, user="root", folder=folder, ports=ports))


def _idle_nodes(environment: dict[str, str]) -> set[str]:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=environment, capture_output=True, text=True, check=False
    )
    return set(done.stdout.split())


def _cancel_all(environment: dict[str, str]) -> None:
    """Cancel all jobs, since tasks outlive their daemons."""
    squeue = ["squeue", "-h", "-o", "%A"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        jobs = subprocess.run(squeue, env=environment, capture_output=True, text=True, check=False).stdout.split()
        if not jobs:
            return
        subprocess.run(["scancel", *jobs], env=environment, capture_output=True, check=False)
        time.sleep(0.5)


def _wait(ready, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = [f"{path.name}: {path.read_text(errors='replace')[-1000:]}" for path in folder.glob("*.out")]
            raise RuntimeError("the cluster did not come up:\n" + "\n".join(logs))
        time.sleep(0.1)


if __name__ == "__main__":
    with cluster() as variables:
        subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=variables, check=False)
