"""Ollama onto a host, without root: its official archive, unpacked under data_dir/runtimes/ollama/.

The archive is looked for in this order: the air-gapped folder, our store, another host of the fleet that has
this release (one that swarmctl installed or one of its owner's), the official release. A hash that the
inventory or the release's own list names is checked wherever the archive comes from.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

from swarmctl.errors import RemoteError, SwarmError, TransferFailed
from swarmctl.fleet.download import download
from swarmctl.fleet.host_shell import on_host
from swarmctl.fleet.install import require_space, transfer_time
from swarmctl.fleet.store import hash_file, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import Remote
    from swarmctl.fleet.store import Store
    from swarmctl.steps import InstallRuntime

#: Ollama's own place for releases; sha256sum.txt beside the archives names their hashes
RELEASES = "https://github.com/ollama/ollama/releases/download"
SUMS = "sha256sum.txt"
ENDINGS = (".tar.zst", ".tgz", ".tar.gz")
UNPACK_LIMIT = 1800.0
LIST_TIMEOUT = 20.0


def install_ollama(remote: Remote, step: InstallRuntime, facts: Facts, store: Store,
                   holders: Callable[[str, str], Iterable[tuple[Remote, str, str]]], tell: Teller) -> None:
    """Make the release of `step` be on the host. `holders` gives, for a version and a platform, the hosts
    that have it, each with its data_dir and the path of the binary.

    Raises RemoteErrors, DiskFull, ToolMissing, and SwarmError where the release is nowhere to be had.
    """
    key = f"ollama-{step.version}-{step.backend}"
    with store.claim(key, on_wait=lambda who: tell(f"{who} fetches this release"), what="Ollama"):
        archive = (_from_airgap(step, store) or _from_store(store, key) or
                   _from_host(step, key, store, holders, tell) or _from_release(step, key, store, tell))
    digest = hash_file(archive)
    if step.sha256 and archive.parent == store.airgap and digest != step.sha256:
        raise SwarmError(f"{archive} has the sha256 {digest}, not {step.sha256}",
                         hint="correct ollama.sha256 in the inventory, or bring the right archive")
    size = archive.stat().st_size
    require_space(remote, facts.data_dir, size * 4, f"Ollama {step.version}")
    name = f"{key}{_ending(archive)}"
    tell(f"copying {size / 1e6:,.1f} MB", 0.0)
    remote.put(archive, f"{facts.data_dir}/incoming/{name}", sha256=digest, timeout=transfer_time(size),
               progress=tell.bytes(size))
    tell("unpacking")
    on_host(remote, "install_ollama", facts.data_dir, step.version, name, timeout=UNPACK_LIMIT)


def listed_hash(text: str, asset: str) -> str | None:
    """The hash of an archive in the words of sha256sum(1)."""
    for line in text.splitlines():
        digest, _, name = line.strip().partition(" ")
        if name.strip().lstrip("*").removeprefix("./") == asset and len(digest) == 64:
            return digest.lower()
    return None


def _from_airgap(step: InstallRuntime, store: Store) -> Path | None:
    """An archive in the air-gapped folder, under its official name or with the version in it; checked against
    the release's list where that lies beside it."""
    if store.airgap is None:
        return None
    for name in (f"ollama-{step.version}-{step.backend}", f"ollama-{step.backend}"):
        for ending in ENDINGS:
            path = store.airgap / f"{name}{ending}"
            if path.exists():
                _check_beside(path)
                return path
    return None


def _check_beside(path: Path) -> None:
    for beside in (path.with_name(f"{path.name}.sha256"), path.with_name(SUMS)):
        if not beside.exists():
            continue
        text = beside.read_text(encoding="utf-8")
        wanted = listed_hash(text, path.name) or (text.split() or [""])[0] * (beside.name != SUMS)
        if wanted and hash_file(path) != wanted.lower():
            raise SwarmError(f"{path} is not what {beside.name} says", hint="bring that archive anew")


def _from_store(store: Store, key: str) -> Path | None:
    return next((path for path in _kept(store, key) if path.exists()), None)


def _kept(store: Store, key: str) -> Iterator[Path]:
    return (store.root / "ollama" / f"{key}{ending}" for ending in ENDINGS)


def _from_host(step: InstallRuntime, key: str, store: Store,
               holders: Callable[[str, str], Iterable[tuple[Remote, str, str]]],
               tell: Teller) -> Path | None:
    for other, data_dir, binary in holders(step.version, step.backend):
        tell(f"fetching the Ollama of {other.host}")
        kept = store.root / "ollama" / f"{key}.tar.gz"
        try:
            there = on_host(other, "pack_ollama", data_dir, key, binary, timeout=UNPACK_LIMIT).strip()
            with store.scratch() as folder:
                copy = folder / kept.name
                other.get(there, copy, timeout=UNPACK_LIMIT,
                          progress=lambda size: tell(f"fetched {size / 1e6:,.1f} MB"))
                with writing(kept) as part:
                    shutil.copyfile(copy, part)
            on_host(other, "unpacked", data_dir, key)
        except RemoteError as exc:
            tell(f"{other.host} could not give its Ollama ({exc.message})")
            continue
        return kept
    return None


def _from_release(step: InstallRuntime, key: str, store: Store, tell: Teller) -> Path:
    """Download the official archive; its hash comes from the inventory or from the release's own list."""
    tell(f"fetching Ollama {step.version}")
    try:
        ending, digest = _official(step)
        return download(f"{RELEASES}/v{step.version}/ollama-{step.backend}{ending}",
                        store.root / "ollama" / f"{key}{ending}", digest, tell)
    except TransferFailed as exc:
        raise TransferFailed(
            f"Ollama {step.version} is on no host here, and cannot be fetched: {exc.message}",
            hint=f"set `airgap:` in the inventory to a folder that holds its official archive "
                 f"ollama-{step.backend}.tgz (or .tar.zst), or name a release that a host has in "
                 "ollama.version") from exc


def _official(step: InstallRuntime) -> tuple[str, str]:
    """The ending and the hash of the release's archive, as its own list has them."""
    sums = _release_list(step.version)
    named = [(ending, digest) for ending in ENDINGS
             if (digest := listed_hash(sums, f"ollama-{step.backend}{ending}"))]
    if not named:
        raise TransferFailed(f"Ollama {step.version} has no archive for {step.backend}")
    if step.sha256 and step.sha256 != named[0][1]:
        raise SwarmError(f"the release's own list says sha256 {named[0][1]}, and ollama.sha256 {step.sha256}",
                         hint="trust neither before you know why they differ")
    return named[0]


def _release_list(version: str) -> str:
    url = f"{RELEASES}/v{version}/{SUMS}"
    try:
        with urlopen(url, timeout=LIST_TIMEOUT) as reply:  # noqa: S310  https only
            return str(reply.read(1 << 20).decode(errors="replace"))
    except (URLError, OSError) as exc:
        raise TransferFailed(f"{url}: {exc}") from exc


def _ending(path: Path) -> str:
    return next(ending for ending in ENDINGS if path.name.endswith(ending))
