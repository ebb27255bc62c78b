"""The store on this machine: builds, the pinned source, model files, and the hashes it remembers."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import tarfile
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from swarmctl.errors import InventoryError, LockBusy, SwarmError, TransferFailed
from swarmctl.fleet import store
from swarmctl.fleet.locks import local_lock
from swarmctl.fleet.store import Store, describe_file, resolve_model
from swarmctl.inventory import ModelWish
from swarmctl.paths import Paths
from swarmctl.runtimes.llamacpp_build import SDIST


@pytest.fixture
def paths(tmp_path):
    return Paths.from_environ({"SWARMCTL_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)})


@pytest.fixture
def tarball(tmp_path):
    """A build in miniature: an executable and a relative link."""
    folder = tmp_path / "made" / "bin"
    folder.mkdir(parents=True)
    (folder / "llama-server").write_text("#!/bin/sh\nexit 0\n")
    (folder / "llama-server").chmod(0o755)
    (folder / "libllama.so").symlink_to("libllama.so.0")
    (folder / "libllama.so.0").write_bytes(b"lib")
    path = tmp_path / "build.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, "bin")
    return path


def shipped():
    return Path(str(store.resources.files("swarmctl.shipped"))) / "small" / "model.gguf"


def test_a_build_goes_in_and_comes_out_whole(tmp_path, tarball):
    kept = Store(tmp_path / "store")
    assert kept.runtime("k") is None
    assert kept.runtime_tar("k") is None
    folder = kept.add_runtime("k", tarball)
    assert kept.runtime("k") == folder
    assert kept.runtimes() == ("k",)
    assert os.access(folder / "bin" / "llama-server", os.X_OK)
    assert (folder / "bin" / "libllama.so").read_bytes() == b"lib"
    path, digest = kept.runtime_tar("k")
    assert sha256(path.read_bytes()).hexdigest() == digest


def test_a_build_without_its_mark_does_not_count(tmp_path, tarball):
    kept = Store(tmp_path / "store")
    (kept.add_runtime("k", tarball) / ".complete").unlink()
    assert kept.runtime("k") is None
    assert kept.runtimes() == ()


def test_what_is_no_build_is_refused_and_leaves_nothing(tmp_path):
    kept = Store(tmp_path / "store")
    other = tmp_path / "other.tar.gz"
    with tarfile.open(other, "w:gz") as tar:
        tar.add(__file__, "bin/something")
    for path in (other, Path(__file__)):
        with pytest.raises(SwarmError, match=r"holds no bin/llama-server|cannot be unpacked"):
            kept.add_runtime("k", path)
    assert list((tmp_path / "store" / "runtimes").iterdir()) == []


def test_an_airgapped_folder_gives_builds_and_source(tmp_path, tarball):
    gap = tmp_path / "usb"
    gap.mkdir()
    (gap / "k.tar.gz").write_bytes(tarball.read_bytes())
    (gap / "k.tar.gz.sha256").write_text(sha256(tarball.read_bytes()).hexdigest() + "  k.tar.gz\n")
    (gap / SDIST).write_bytes(b"source")
    kept = Store(tmp_path / "store", gap)
    assert kept.runtime_tar("k") is not None
    assert kept.sdist(lambda _: None, digest=sha256(b"source").hexdigest()) == gap / SDIST


def test_an_airgapped_build_with_the_wrong_hash_is_refused(tmp_path, tarball):
    (tmp_path / "k.tar.gz").write_bytes(tarball.read_bytes())
    (tmp_path / "k.tar.gz.sha256").write_text("0" * 64)
    with pytest.raises(SwarmError, match="has the sha256"):
        Store(tmp_path / "store", tmp_path).runtime_tar("k")


def test_one_at_a_time_claims_a_build(tmp_path):
    kept, order = Store(tmp_path), []
    inside = threading.Event()

    def second():
        inside.wait(60)
        with kept.claim("k", on_wait=order.append):
            order.append("second")

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    with kept.claim("k", on_wait=order.append):
        inside.set()
        thread.join(0.5)
        order.append("first")
    thread.join(60)
    assert [word.split("'s")[0].split(" ")[0] for word in order[:1]] == ["waiting"]
    assert order[1:] == ["first", "second"]


def test_a_lock_that_is_not_given_back_names_its_holder(tmp_path):
    with local_lock(tmp_path / "l", "up", wait=1, on_wait=lambda _: None), \
            pytest.raises(LockBusy, match=f"pid {os.getpid()}"), \
            local_lock(tmp_path / "l", "up", wait=0.2, on_wait=lambda _: None):
        raise AssertionError("never here")


def test_a_shipped_model_and_a_local_one_are_the_same_file(paths, tmp_path):
    ours = resolve_model(ModelWish("small", "shipped:small"), tmp_path, paths)
    there = resolve_model(ModelWish("mine", os.path.relpath(shipped(), tmp_path)), tmp_path, paths)
    assert there == replace(ours, name="mine", path=there.path)
    assert ours.sha256 == sha256(shipped().read_bytes()).hexdigest()
    assert ours.parameters > 100_000
    assert ours.template_sha256


def test_an_unknown_shipped_model_is_an_error_that_names_those_there_are(paths, tmp_path):
    with pytest.raises(SwarmError, match="ships no model 'giant'") as caught:
        resolve_model(ModelWish("x", "shipped:giant"), tmp_path, paths)
    assert "small" in caught.value.hint


def test_a_file_with_another_hash_than_promised_is_refused(paths, tmp_path):
    with pytest.raises(SwarmError, match="has the sha256"):
        resolve_model(ModelWish("x", str(shipped()), sha256="0" * 64), tmp_path, paths)


def test_a_file_is_hashed_once_and_again_when_it_changed(paths, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(shipped().read_bytes())
    first, seen = describe_file("m", path, paths.store / "described"), path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    again = describe_file("other", path, paths.store / "described")
    assert again == replace(first, name="other"), "of one size and time, so it is not read again"
    path.write_bytes(path.read_bytes() + b"x")
    assert describe_file("m", path, paths.store / "described").sha256 != first.sha256


def test_a_damaged_memory_of_hashes_is_ignored(paths, tmp_path):
    first = describe_file("m", shipped(), paths.store / "described")
    for note in (paths.store / "described").iterdir():
        note.write_text("{")
    assert describe_file("m", shipped(), paths.store / "described") == first


def test_a_download_needs_its_hash(paths, tmp_path):
    with pytest.raises(InventoryError, match="needs its `sha256`"):
        resolve_model(ModelWish("x", "https://127.0.0.1:1/m.gguf"), tmp_path, paths)


class Flaky(http.server.BaseHTTPRequestHandler):
    """Serves a file with ranges, and breaks every first whole answer off in the middle."""

    def do_GET(self):
        data = shipped().read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.path != "/m.gguf":
            self.send_error(404)
            return
        self.server.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:] if start else data[: len(data) // 3])

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """An https server with a certificate that this process trusts."""
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, capture_output=True, timeout=60, check=False)
    if made.returncode:
        pytest.skip("no openssl here")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    server.asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(60)


def test_a_download_that_breaks_off_is_resumed_and_verified(paths, tmp_path, web):
    url = f"https://localhost:{web.server_port}/m.gguf"
    wish = ModelWish("x", url, sha256=sha256(shipped().read_bytes()).hexdigest())
    found = resolve_model(wish, tmp_path, paths)
    assert Path(found.path).read_bytes() == shipped().read_bytes()
    assert web.asked == [0, shipped().stat().st_size // 3]
    resolve_model(wish, tmp_path, paths)
    assert len(web.asked) == 2, "it is not fetched again"


def test_a_download_with_other_bytes_is_removed(paths, tmp_path, web):
    wish = ModelWish("x", f"https://localhost:{web.server_port}/m.gguf", sha256="1" * 64)
    with pytest.raises(SwarmError, match="has the sha256"):
        resolve_model(wish, tmp_path, paths)
    assert list((paths.store / "models").iterdir()) == []


def test_a_download_that_does_not_exist_is_not_tried_again(paths, tmp_path, web):
    wish = ModelWish("x", f"https://localhost:{web.server_port}/no.gguf", sha256="1" * 64)
    with pytest.raises(TransferFailed, match="404"):
        resolve_model(wish, tmp_path, paths)
