"""What hosts are given, kept on this machine by content: built runtimes, the pinned source, model files.

Under paths.store: `runtimes/<key>/bin/*` with `.complete`, `runtimes/<key>.tar.gz` as hosts get it,
`sources/`, `models/<sha256>.gguf`, `described/` (hashes of local files by path, size and time). All of it may
be deleted.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import DiskFull, InventoryError, SwarmError
from swarmctl.fleet.locks import local_lock
from swarmctl.runtimes.base import AdapterFile, ModelFile
from swarmctl.runtimes.gguf_header import read_model_file
from swarmctl.runtimes.llamacpp_build import LLAMACPP, SDIST_SHA256, sdist_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swarmctl.inventory import AdapterWish, ModelWish
    from swarmctl.paths import Paths

BUILD_LIMIT = 3 * 3600.0
PIP_LIMIT = 1800.0
AIRGAP_HINT = "or set `airgap:` in the inventory to a folder that holds it"


@dataclass(frozen=True, slots=True)
class Store:
    """The store at `root`. `airgap` is a folder that is looked into before anything is fetched or built."""

    root: Path
    airgap: Path | None = None

    @classmethod
    def of(cls, paths: Paths, airgap: str | None = None) -> Store:
        """The store of this process's folders."""
        return cls(paths.store, Path(airgap) if airgap else None)

    def runtime(self, key: str) -> Path | None:
        """The folder of a whole build, with bin/ inside, or None."""
        folder = self.root / "runtimes" / key
        return folder if (folder / ".complete").exists() else None

    def runtimes(self) -> tuple[str, ...]:
        """The keys of all whole builds."""
        return tuple(sorted(mark.parent.name for mark in (self.root / "runtimes").glob("*/.complete")))

    def runtime_tar(self, key: str) -> tuple[Path, str] | None:
        """A build as hosts get it, and its sha256: from the store, else from the air-gapped folder; or
        None."""
        if self.runtime(key) is None and not self._from_airgap(key):
            return None
        path = self.root / "runtimes" / f"{key}.tar.gz"
        if not path.exists():
            with writing(path) as part, tarfile.open(part, "w:gz", compresslevel=6) as tar:
                tar.add(self.root / "runtimes" / key / "bin", "bin")
        return path, hash_file(path)

    def add_runtime(self, key: str, tarball: Path) -> Path:
        """Unpack a build into the store and keep its tar. Raises SwarmError where it holds no
        llama-server."""
        folder = self.root / "runtimes" / key
        with self.scratch() as temporary:
            part = temporary / "new"
            _unpack(tarball, part)
            (part / ".complete").touch()
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
        with writing(folder.with_name(f"{key}.tar.gz")) as kept:
            shutil.copyfile(tarball, kept)
        return folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the builds for as long as the block runs."""
        runtimes = self.root / "runtimes"
        runtimes.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=runtimes, prefix=".part-") as folder:
            yield Path(folder)

    @contextmanager
    def claim(self, key: str, *, on_wait: Callable[[str], None], what: str = "llama.cpp") -> Iterator[None]:
        """Be the only one, in any process, that obtains the build of that key."""
        lock = self.root / "runtimes" / f".{key}.lock"
        with local_lock(lock, f"{what} {key}", wait=BUILD_LIMIT, on_wait=on_wait):
            yield

    def sdist(self, note: Callable[[str], None], version: str = LLAMACPP,
              digest: str | None = None) -> Path:
        """A version's source, verified: from the store, the air-gapped folder, or the package index.

        `digest` is its sha256 where somebody named it; only in the air-gapped folder may there be none.
        """
        name = sdist_name(version)
        digest = digest or (SDIST_SHA256 if version == LLAMACPP else None)
        kept = self.root / "sources" / name
        if digest and kept.exists() and hash_file(kept) == digest:
            return kept
        if self.airgap and (self.airgap / name).exists():
            return _verified(self.airgap / name, digest) if digest else self.airgap / name
        if not digest:
            raise SwarmError(f"the hash of llama.cpp {version}'s source is not known, so it is not fetched",
                             hint=f"name it as llamacpp.sha256, {AIRGAP_HINT}: {name}")
        note(f"fetching the source of llama.cpp {version} (77 MB)")
        with tempfile.TemporaryDirectory() as temporary:
            _pip_download(Path(temporary), self.root / "pip", version, digest)
            found = _verified(Path(temporary) / name, digest)
            with writing(kept) as part:
                shutil.copyfile(found, part)
        return kept

    def _from_airgap(self, key: str) -> bool:
        path = self.airgap / f"{key}.tar.gz" if self.airgap else None
        if path is None or not path.exists():
            return False
        beside = path.with_name(f"{path.name}.sha256")
        if beside.exists():
            _verified(path, beside.read_text(encoding="utf-8").split()[0])
        self.add_runtime(key, path)
        return True


def resolve_model(wish: ModelWish, inventory_dir: Path, paths: Paths, *, airgap: str | None = None,
                  note: Callable[[str], None] = lambda _: None) -> ModelFile:
    """The file a model's `source` means, described: shipped with swarmctl, a local GGUF, or downloaded once.

    Raises SwarmError where it is missing, is not what `sha256` says, or is no usable GGUF.
    """
    path = _locate(wish, inventory_dir, paths, Path(airgap) if airgap else None, note)
    found = describe_file(wish.name, path, paths.store / "described")
    if wish.sha256 and found.sha256 != wish.sha256.lower():
        raise SwarmError(f"model {wish.name}: {path} has the sha256 {found.sha256}, not {wish.sha256}",
                         hint="correct `sha256` in the inventory, or fetch the right file")
    return replace(found, adapter=_adapter(wish.name, wish.adapter)) if wish.adapter else found


def describe_file(name: str, path: Path, memory: Path) -> ModelFile:
    """Hash and describe a GGUF file; remembered in `memory` while its size and time stay the same."""
    try:
        seen = path.stat()
    except OSError as exc:
        raise SwarmError(f"model {name}: {path} cannot be read: {exc.strerror}",
                         hint="correct `source` in the inventory") from exc
    mark = [str(path), seen.st_size, seen.st_mtime_ns]
    note = memory / f"{sha256(str(path).encode()).hexdigest()[:24]}.json"
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["mark"] == mark:
            return ModelFile(**{**kept["model"], "name": name})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = read_model_file(name, path, hash_file(path))
    with writing(note) as part:
        part.write_text(json.dumps({"mark": mark, "model": asdict(found)}), encoding="utf-8")
    return found


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name `path` when the block ends well. Translates a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as exc:
        kind = DiskFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else SwarmError
        raise kind(f"{path} cannot be written: {exc.strerror}", hint=f"see {path.parent}") from exc
    finally:
        part.unlink(missing_ok=True)


def _adapter(name: str, wish: AdapterWish) -> AdapterFile:
    path = Path(wish.source)
    try:
        size, digest = path.stat().st_size, hash_file(path)
    except OSError as exc:
        raise SwarmError(f"model {name}: its adapter {path} cannot be read: {exc.strerror}",
                         hint="`swarmctl rollback` goes back to a release that is whole") from exc
    if digest != wish.sha256:
        raise SwarmError(f"model {name}: its adapter {path} has the sha256 {digest}, not {wish.sha256}",
                         hint="it was changed after it was deployed: deploy its run again")
    return AdapterFile(str(path), digest, size, wish.over)


def _locate(wish: ModelWish, inventory_dir: Path, paths: Paths, airgap: Path | None,
            note: Callable[[str], None]) -> Path:
    if wish.source.startswith("shipped:"):
        return _shipped(wish.source.removeprefix("shipped:"))
    if not wish.source.startswith("https://"):
        return inventory_dir / Path(wish.source).expanduser()
    if not wish.sha256:
        raise InventoryError(f"model {wish.name}: an https source needs its `sha256`")
    kept = paths.store / "models" / f"{wish.sha256.lower()}.gguf"
    if kept.exists():
        return kept
    named = airgap / wish.source.rsplit("/", 1)[-1].split("?")[0] if airgap else None
    if named and named.exists():
        return named
    from swarmctl.fleet.download import download

    return download(wish.source, kept, wish.sha256.lower(), note)


def _shipped(name: str) -> Path:
    path = Path(str(resources.files("swarmctl.shipped"))) / name / "model.gguf"
    if not path.exists():
        there = sorted(entry.parent.name for entry in path.parents[1].glob("*/model.gguf"))
        raise SwarmError(f"swarmctl ships no model {name!r}", hint=f"it ships: {', '.join(there) or 'none'}")
    return path


def _unpack(tarball: Path, to: Path) -> None:
    try:
        with tarfile.open(tarball) as tar:
            _extract(tar, to)
    except (OSError, tarfile.TarError) as exc:
        raise SwarmError(f"{tarball} cannot be unpacked: {exc}") from exc
    if not (to / "bin" / "llama-server").exists():
        raise SwarmError(f"{tarball} holds no bin/llama-server", hint="it is no runtime of swarmctl's making")


def _extract(tar: tarfile.TarFile, to: Path) -> None:
    """Unpack what stays below `to`. Before 3.11.4 (Debian 12 has 3.11.2) there are no filters, so we look."""
    if hasattr(tarfile, "data_filter"):
        tar.extractall(to, filter="data")
        return
    for member in tar.getmembers():
        place = os.path.normpath(to / member.name)
        link = os.path.normpath(Path(place).parent / member.linkname) if member.issym() else place
        plain = member.isreg() or member.isdir() or member.issym()
        if not plain or not all(Path(path).is_relative_to(to) for path in (place, link)):
            raise tarfile.TarError(f"{member.name!r} does not belong into it")
        member.mode &= 0o755
    tar.extractall(to)  # noqa: S202  every member was looked at


def _verified(path: Path, digest: str) -> Path:
    found = hash_file(path)
    if found != digest:
        raise SwarmError(f"{path} has the sha256 {found}, not {digest}", hint="remove it and try again")
    return path


def _pip_download(to: Path, tools: Path, version: str, digest: str) -> None:
    """Have pip fetch the sdist, from wherever this machine's pip is configured to look."""
    asked, requirement = to / "requirements.txt", f"llama-cpp-python=={version}"
    asked.write_text(f"{requirement} --hash=sha256:{digest}\n", encoding="utf-8")
    argv = (*_pip(tools), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary",
            "llama-cpp-python", "--require-hashes", "--dest", str(to), "--requirement", str(asked))
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PIP_LIMIT, check=False,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as exc:
        raise SwarmError(f"the source of llama.cpp did not arrive within {PIP_LIMIT:.0f} s",
                         hint=f"try again, {AIRGAP_HINT}") from exc
    if done.returncode != 0:
        said = "; ".join(done.stderr.strip().splitlines()[-2:])
        raise SwarmError(f"the source of llama.cpp ({requirement}) cannot be fetched: {said}",
                         hint=f"check the network and pip's configuration, {AIRGAP_HINT}: "
                              f"{sdist_name(version)}")


def _pip(tools: Path) -> tuple[str, ...]:
    """This interpreter's pip; where it has none (uv makes such environments), one of our own."""
    if importlib.util.find_spec("pip"):
        return (sys.executable, "-m", "pip")
    python = tools / "bin" / "python"
    if not python.exists():
        try:
            subprocess.run((sys.executable, "-m", "venv", "--clear", str(tools)), check=True,
                           capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as exc:
            raise SwarmError("there is no pip to fetch the source of llama.cpp with",
                             hint=f"install python3-venv or pip, {AIRGAP_HINT}") from exc
    return (str(python), "-m", "pip")
