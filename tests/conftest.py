"""Shared fixtures: labs of real SSH hosts, and the built llama.cpp. Everything that is started here is
ended here."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swarmctl.errors import SwarmError
from swarmctl.lab.lab import Lab
from swarmctl.lab.sshd import find_sshd
from swarmctl.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateways import Serving

BINARIES = ("llama-server", "llama-quantize", "llama-bench")
# In the background of a shell SIGINT is ignored, under nohup SIGHUP, and all that we start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# People have it seldom set, and without it output is held back, which may then fail at the very end.
os.environ.pop("PYTHONUNBUFFERED", None)

#: The longest files go first, so that no worker is left with one of them at the end.
LONGEST_FILES = ("test_cut", "test_deploy", "test_watch", "test_train_hosts", "test_upgrade_trouble",
                 "test_train", "test_dataset", "test_idle", "test_upgrade", "test_adapter", "test_journey",
                 "test_doctor_mends", "test_cli_reference", "test_metrics_hosts", "test_intermittent")

NETNS_REASON = "network namespaces need root and iproute2"


def pytest_collection_modifyitems(items) -> None:
    order = {name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def can_make_namespaces() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


@pytest.fixture(scope="session")
def make_lab(tmp_path_factory) -> Iterator[Callable[..., Lab]]:
    """A function that makes and starts a lab: make_lab(mode="loopback", hosts=3). Each is wiped in the
    end."""
    try:
        find_sshd()
    except SwarmError as exc:
        pytest.skip(str(exc))
    numbers = itertools.count()
    with _guard() as note, contextlib.ExitStack() as wiping:
        def make(mode: str = "loopback", hosts: int = 3, **options) -> Lab:
            if mode == "netns" and not can_make_namespaces():
                pytest.skip(NETNS_REASON)
            folder = tmp_path_factory.mktemp("lab") / f"lab{next(numbers)}"
            note(folder)
            lab = Lab.create(folder, mode, hosts, **options)
            wiping.callback(lab.wipe)
            lab.start()
            return lab

        yield make


@pytest.fixture(scope="session")
def gateway(llamacpp_bin, tmp_path_factory) -> Iterator[Serving]:
    """`swarmctl serve` in front of real servers, with an API key."""
    from gateways import real_swarm

    folder = tmp_path_factory.mktemp("gateway")
    with real_swarm(folder, llamacpp_bin, os.environ.get("SWARMCTL_TEST_OLLAMA", "")) as found:
        yield found


@pytest.fixture(scope="module")
def client(request, gateway) -> Iterator[object]:
    """A client of the gateway, as the module's own `connect` makes it."""
    with request.module.connect(gateway) as made:
        yield made


@pytest.fixture(params=["tooly", "tiny-small"])
def model(request) -> str:
    """One model of llama.cpp, and one of Ollama."""
    if request.param == "tiny-small" and not os.environ.get("SWARMCTL_TEST_OLLAMA"):
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    return request.param


GUARD = """
import sys
from pathlib import Path
from swarmctl.lab.lab import Lab
for folder in sys.stdin.read().splitlines():
    if (Path(folder) / "lab.json").exists():
        Lab.load(Path(folder)).wipe()
"""


@contextlib.contextmanager
def _guard() -> Iterator[Callable[[Path], None]]:
    """A process that wipes the labs it was told of once our end of its pipe closes, however we ended."""
    guard = subprocess.Popen((sys.executable, "-c", GUARD), stdin=subprocess.PIPE, text=True,
                             start_new_session=True)
    pipe = guard.stdin
    assert pipe is not None

    def note(folder: Path) -> None:
        pipe.write(f"{folder}\n")
        pipe.flush()

    try:
        yield note
    finally:
        pipe.close()
        guard.wait(120)


@pytest.fixture(scope="session")
def lab_loopback(make_lab) -> Lab:
    """Three hosts on loopback ports, shared by all tests: leave it as you found it."""
    return make_lab("loopback")


@pytest.fixture(scope="session")
def lab_netns(make_lab) -> Lab:
    """Three hosts in network namespaces, shared by all tests: leave it as you found it. Skips without
    root."""
    return make_lab("netns")


@pytest.fixture
def lab(make_lab) -> Iterator[Lab]:
    """A loopback lab of a test's own, to be hurt at will. It is stopped after the test."""
    made = make_lab("loopback")
    yield made
    made.stop()


@pytest.fixture
def cable_lab(make_lab) -> Iterator[Lab]:
    """A lab of network namespaces of a test's own, with cables to pull. Skips without root."""
    made = make_lab("netns")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def llamacpp_bin() -> Path:
    """The folder of llama-server and its companions: SWARMCTL_TEST_LLAMACPP, else the build in the user's
    cache."""
    found = next((folder for folder in _llamacpp_folders()
                  if all((folder / name).is_file() for name in BINARIES)), None)
    if found is None:
        pytest.skip("llama.cpp is not built: `swarmctl runtime build` does it, or set SWARMCTL_TEST_LLAMACPP")
    return found


def _llamacpp_folders() -> Iterator[Path]:
    named = os.environ.get("SWARMCTL_TEST_LLAMACPP")
    if named:
        yield Path(named)
    store = Paths.from_environ(os.environ).store
    yield from sorted((store / "runtimes").glob("**/bin"))
