"""The house's own laws: what imports what, how long a module may be, what the errors and the pages say."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from swarmctl import errors

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "swarmctl").rglob("*.py"))
LONGEST = 400
NOT_A_NOUN = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "stuff"}
#: One module of a room tells another; no person ever meets these.
BETWEEN_MODULES = {"Unreadable", "Malformed", "Escalated",
                   "JobError"}  # a job tells it in its result.json
#: Spelt apart, so that this file does not hold what it forbids.
REGISTRIES = ("pypi" + ".org", "pythonhosted" + ".org", "crates" + ".io", "registry.npmjs" + ".org",
              "repo.maven" + ".apache", "proxy.golang" + ".org", "deb.debian" + ".org")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30)
    paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_every_import_runs_downward():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_idea_and_says_which(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) < LONGEST
    assert path.stem not in NOT_A_NOUN


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_a_screen(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    assert [f"{each.name}: {body_lines(each)} lines" for each in functions if body_lines(each) > 40] == []


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a body without its docstring; a command line's parameters are its help and do not count."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_only_the_command_line_catches_everything():
    found = {str(path.relative_to(ROOT / "swarmctl")) for path in MODULES if swallows_everything(path)}
    # These carry an exception over to the thread that waits for it, which raises it again.
    carriers = {"fleet/pool.py", "fleet/shell.py", "dispatch/hedge.py", "dispatch/vectors.py",
                "gateway/engine.py"}
    assert found == {"cli/main.py"} | (found & carriers)


def swallows_everything(path: Path) -> bool:
    """Whether a handler takes any exception and does not raise it again."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    kinds = {"Exception", "BaseException"}
    broad = [each for each in handlers if each.type is None or ast.unparse(each.type) in kinds]
    return any(not isinstance(each.body[-1], ast.Raise) for each in broad)


@pytest.mark.parametrize("name", sorted(vars(errors)))
def test_every_error_says_when_it_is_met(name):
    error = getattr(errors, name)
    if inspect.isclass(error) and issubclass(error, Exception):
        assert issubclass(error, errors.SwarmError)
        assert error.__doc__ != errors.SwarmError.__doc__ or error is errors.SwarmError
        assert error.exit_code in {1, 2, 3}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_class_lives_outside_the_tree(path):
    roots = {"Exception", "BaseException", "RuntimeError", "ValueError", "OSError"}
    tree = ast.parse(path.read_text("utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {node.name for node in classes if {ast.unparse(base) for base in node.bases} & roots}
    assert found <= {"SwarmError", *BETWEEN_MODULES}


def test_the_architecture_page_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = ROOT / "swarmctl"
    rooms = [f"{path.parent.name}/" for path in house.glob("*/__init__.py")]
    single = [path.name for path in house.glob("[!_]*.py")]
    assert [room for room in [*rooms, *single] if room not in page] == []


def test_every_page_that_a_page_links_to_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} → {target}"


def test_no_file_names_a_package_registry():
    for path in tracked_files():
        content = path.read_bytes()
        assert [host for host in REGISTRIES if host.encode() in content] == [], path


def test_the_locks_hold_what_the_project_asks_for_by_hash():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for lock, asked in {"control": [], **extras}.items():
        text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
        locked = {line.partition("==")[0].lower() for line in text.splitlines() if "==" in line}
        names = {re.split(r"[<>=!\[; ]", each)[0].lower() for each in [*project["dependencies"], *asked]}
        assert names <= locked, f"run `make lock`: requirements/{lock}.txt lacks {names - locked}"
        assert text.count("--hash=sha256:") >= len(locked)
        assert "torch" not in locked or lock in {"train", "qlora", "deepspeed", "embed"}


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.import_module("swarmctl").__version__ == project["version"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
