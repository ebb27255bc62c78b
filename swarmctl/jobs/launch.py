"""Training in several processes: torchrun starts them, on one host or several; accelerate, inside TRL, uses
them.

The job itself stays one process, which waits. Its processes end with it, however it ends: each looks every
second whether the run's lock is still held.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.bond import Bond
from swarmctl.jobs.folder import Folder, read_json, write_json
from swarmctl.jobs.meet import BACKEND
from swarmctl.jobs.spec import JobError, read_spec

if TYPE_CHECKING:
    from swarmctl.jobs.spec import Spec

GRACE = 20.0
LOOK_EVERY = 1.0
STATIC = 1800  # seconds that hosts wait for each other
#: how gloo, NCCL and torch's store say that another process is there no more
LOST = re.compile(r"Connection (?:reset|closed|refused)[^.\n]*|Broken pipe|Timed out[^.\n]*|failed to recv"
                  r"|remote process exited|[Ss]ocket [Tt]imeout|Connection timed out|No route to host")
GONE = "a host that trains with this one is gone, or reaches it no more"
SIOCGIFADDR = 0x8915  # netdevice(7)
#: torchrun makes a folder of its own for each start, in /tmp and for ever, unless it is told where
OF_TORCHRUN = ".torchrun"


def launch(spec: Spec, folder: Folder, stage: str) -> dict[str, Any]:
    """Train in the spec's processes; what the first of them gave. Raises JobError with the reason of one
    that failed."""
    gave, failed = folder.path / ".gave.json", folder.path / ".failed.json"
    for path in (gave, failed):
        path.unlink(missing_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": str(spec.threads or 1)}
    if spec.deepspeed and spec.threads:  # threads are bounded where there is no GPU
        environ["DS_ACCELERATOR"] = "cpu"
    if spec.node and (name := interface(spec.node.address)):
        environ.setdefault("GLOO_SOCKET_IFNAME", name)
    process = subprocess.Popen(argv(spec, stage), cwd=folder.path, env=environ, stdin=subprocess.DEVNULL)
    bond = Bond(spec.node, spec.run, process.terminate) if spec.node else None
    try:
        status = process.wait()
    finally:
        if bond:
            bond.close(well=process.returncode == 0)
        if process.poll() is None:
            _end(process)
        shutil.rmtree(folder.path / OF_TORCHRUN, ignore_errors=True)
    found = read_json(gave)
    if status != 0 or found is None:
        said = (read_json(failed) or {}).get("error") or (GONE if bond and bond.lost else None)
        raise JobError(str(said or f"a training process ended with status {status}; see the log"))
    for path in (gave, failed):
        path.unlink(missing_ok=True)
    return found


def argv(spec: Spec, stage: str) -> tuple[str, ...]:
    """torchrun's command. Several hosts meet at the first one's address; one host meets itself on a free
    port."""
    module = "torch.distributed.run"
    where: tuple[str, ...] = ("--standalone",)
    if spec.node:
        address = f"[{spec.node.address}]" if ":" in spec.node.address else spec.node.address
        module = "swarmctl.jobs.meet"
        where = (f"--nnodes={spec.node.count}", f"--rdzv-backend={BACKEND}",
                 f"--rdzv-endpoint={address}:{spec.node.port}",
                 f"--rdzv-conf=timeout={STATIC},rank={spec.node.rank}")
    return (sys.executable, "-m", module, *where, f"--nproc-per-node={spec.processes}",
            f"--log-dir={OF_TORCHRUN}", "-m", "swarmctl.jobs.launch", "spec.json", stage)


def interface(address: str) -> str | None:
    """The network interface that leads to an address; None where that cannot be told (Linux and IPv4 only).

    gloo listens where the host's own name resolves to, which is loopback on many a host (Debian writes
    127.0.1.1): the others would find nobody there.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 1))  # a datagram socket sends nothing by this
            mine = sock.getsockname()[0]
            return next((name for _, name in socket.if_nameindex() if _address(sock, name) == mine), None)
    except OSError:
        return None


def _address(sock: socket.socket, name: str) -> str | None:
    try:
        found = fcntl.ioctl(sock.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # an interface without an address
        return None
    return socket.inet_ntoa(found[20:24])


def worker(path: Path, stage: str) -> None:
    """One of the processes, started by torchrun."""
    from swarmctl.jobs.training import train

    folder = Folder(path.absolute().parent)
    threading.Thread(target=_watch, args=(folder,), daemon=True).start()
    first, spec = os.environ.get("LOCAL_RANK", "0") == "0", read_spec(path)
    try:
        gave = train(spec, folder, stage)
    except Exception as exc:
        write_json(folder.path / ".failed.json", {"error": _why(exc, spec)})
        raise
    if first:
        write_json(folder.path / ".gave.json", gave)


def _why(exc: Exception, spec: Spec) -> str:
    """What ended a process, in our words where it is that another one is gone."""
    if isinstance(exc, JobError):
        return str(exc)
    said = f"{type(exc).__name__}: {exc}"
    lost = LOST.search(said)
    if spec.node and lost:
        return f"{GONE} ({lost[0].strip()})"
    return said


def _watch(folder: Folder) -> None:
    """End this process once the job is gone: it would train on for nobody, and beside its successor."""
    while folder.holder() is not None:
        time.sleep(LOOK_EVERY)
    os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let torchrun end its processes, then see that it did."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2])
