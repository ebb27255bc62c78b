"""Pushing a model against scp, a second push, and one model to several hosts.

Against hosts of a lab, each a real sshd on this machine, so every byte is encrypted and decrypted on these
very cores: ratios, not speeds. scp is shown as people run it, and with what `push` does besides: a hash on
the other side and the bytes on the disk before it says so. As root the hosts of the second table live in
network namespaces, and what leaves this machine is counted on the bridge to them; else the report's word is
taken. Prints the Markdown tables of docs/models.md.

    python bench/models.py [MEGABYTES]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import machine, median, run

from swarmctl.fleet.blobs import Blob, Place, from_here, from_host
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.remote import FabricRemote
from swarmctl.fleet.transfer import sha256_of
from swarmctl.inventory import Host
from swarmctl.lab.lab import Lab
from swarmctl.shipped import shipped_model

RUNS = 5
PLAIN = re.compile(r"^version: 1\nssh_config: .*\n", re.MULTILINE)


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as folder:
        for mode, table in (("loopback", show), ("netns" if os.geteuid() == 0 else "loopback", show_three)):
            lab = Lab.create(Path(folder) / table.__name__, mode, hosts=3)
            try:
                lab.start()
                table(lab, size)
            finally:
                lab.wipe()


def show(lab: Lab, size: int) -> None:
    source = lab.folder / "model.gguf"
    with source.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(1 << 20))
    blob = Blob("model", sha256_of(source), source.stat().st_size)
    places = [Place(FabricRemote(Host(host.name, host.name), lab.paths, str(lab.ssh_config)),
                    str(host.data_dir / "blobs" / "model"), str(host.data_dir), host.name,
                    str(lab.ssh_config)) for host in lab.hosts]
    for place in places:
        place.remote.run(("true",), timeout=20)
    ways = {
        "`scp`": lambda: scp(lab, source),
        "`scp`, then `sha256sum` and `sync` there": lambda: scp(lab, source, proven=True),
        "push": lambda: push(source, places[0], blob),
    }
    taken = {name: [] for name in ways}
    for _ in range(RUNS):  # in turn, so that a busy moment is nobody's alone
        for name, way in ways.items():
            taken[name].append(timed(places[0], way))
    push(source, places[0], blob)
    print(f"{size} MiB, {machine()}\n\n| to one host | seconds | MB/s | of scp's rate |")
    print("|---|---:|---:|---:|")
    base = median(taken["`scp`"])
    for name, seconds in taken.items():
        middle = median(seconds)
        print(f"| {name} | {middle:.2f} | {blob.size / middle / 1e6:.0f} | {base / middle:.2f} |")
    show_rest(places, source, blob, base)


def show_rest(places: list[Place], source: Path, blob: Blob, base: float) -> None:
    again = timed(None, lambda: push(source, places[0], blob))
    print(f"| a second push: no weights move | {again:.2f} | | |")
    between = timed(None, lambda: from_host(places[0], places[1], blob, quiet()))
    print(f"| from that host to the next, through this machine | {between:.2f} "
          f"| {blob.size / between / 1e6:.0f} | {base / between:.2f} |")


def show_three(lab: Lab, size: int) -> None:
    model = padded(lab, size)
    print(f"\n| to three hosts, {model.stat().st_size / 1e6:.0f} MB each | seconds | MB from this machine "
          "| MB between hosts |\n|---|---:|---:|---:|")
    for name, between in (("that do not trust each other, one-time keys (`auto`)", "auto"),
                          ("all from this machine (`never`)", "never"),
                          ("whose SSH reaches each other (`trusted`)", "trusted")):
        lab.paths.inventory.write_text(f"{PLAIN.search(lab.paths.inventory.read_text())[0]}"
                                       f"between_hosts: {between}\n{hosts_of(lab)}")
        if between == "trusted":
            lab.befriend()
        for host in lab.hosts:
            shutil.rmtree(host.data_dir / "blobs", ignore_errors=True)
        row(name, lab, model)
        if between == "auto":
            row("a second push: no weights move", lab, model)


def hosts_of(lab: Lab) -> str:
    return "\n".join(("hosts:", *(f"  {host.name}: {{data_dir: {host.data_dir}}}" for host in lab.hosts), ""))


def row(name: str, lab: Lab, model: Path) -> None:
    os.sync()
    before, begun = left_here(lab), time.perf_counter()
    report = push_to_all(lab, model)
    seconds = time.perf_counter() - begun
    straight = sum(one["sent"] for one in report if one["straight"])
    counted = left_here(lab) - before if before is not None else sum(one["sent"] for one in report) - straight
    print(f"| {name} | {seconds:.2f} | {counted / 1e6:.0f} | {straight / 1e6:.0f} |")


def left_here(lab: Lab) -> int | None:
    """Bytes that this machine has sent into the lab, as the kernel counts them; None on loopback."""
    if lab.hosts[0].space is None:
        return None
    return int(Path(f"/sys/class/net/{lab.hosts[0].space.bridge}/statistics/tx_bytes").read_text())


def push_to_all(lab: Lab, model: Path) -> list[dict]:
    """`swarmctl models push` as a person runs it."""
    names = [part for host in lab.hosts for part in ("--to", host.name)]
    argv = (sys.executable, "-m", "swarmctl", "models", "push", str(model), *names, "--json")
    return json.loads(run(argv, environ={**os.environ, **lab.environ}).stdout)


def padded(lab: Lab, size: int) -> Path:
    """The larger shipped model, at a size worth sending: a GGUF may be longer than its tensors."""
    path = lab.folder / "padded.gguf"
    path.write_bytes((shipped_model("large") / "model.gguf").read_bytes() + os.urandom(1 << 20) * size)
    return path


def push(source: Path, place: Place, blob: Blob) -> None:
    from_here(source, place, blob, quiet())


def scp(lab: Lab, source: Path, *, proven: bool = False) -> None:
    there = lab.hosts[0].data_dir / "blobs" / "model"
    there.parent.mkdir(parents=True, exist_ok=True)
    options = ("-F", str(lab.ssh_config), "-o", f"UserKnownHostsFile={lab.paths.known_hosts}")
    subprocess.run(("scp", "-q", *options, str(source), f"{lab.hosts[0].name}:{there}"), check=True)
    if proven:
        subprocess.run(("ssh", *options, lab.hosts[0].name, f"sha256sum {there} && sync {there}"), check=True,
                       stdout=subprocess.DEVNULL)


def timed(place: Place | None, work) -> float:
    if place:
        Path(place.path).unlink(missing_ok=True)
    os.sync()  # what the run before left in the page cache is not this run's to write
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def quiet() -> Teller:
    return Teller("here", 1, 1, "copy", lambda _: None)


if __name__ == "__main__":
    main()
