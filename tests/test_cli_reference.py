"""docs/cli.md says what the program says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swarmctl.cli.app import COMMANDS, LazyGroup

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_make_docs_would_write(generator):
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == generator.render(), "run `make docs`"


@pytest.mark.parametrize(("typed", "said"), [
    ("doctr", "No such command 'doctr'. Did you mean doctor?"), ("zzz", "No such command 'zzz'.")])
def test_a_command_that_is_not_there_names_those_like_it(typed, said):
    done = subprocess.run((sys.executable, "-m", "swarmctl", typed, "--json"), capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith(f"Error: {said}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name):
    command = LazyGroup(name="swarmctl").get_command(None, name)
    assert command is not None
    assert command.help, f"swarmctl {name} has no help text"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name):
    command = LazyGroup(name="swarmctl").get_command(None, name)
    for each in [command, *(getattr(command, "commands", {}).values())]:
        silent = [option.name for option in each.params if hasattr(option, "help") and not option.help
                  and option.param_type_name == "option"]
        assert silent == [], f"{name} {each.name}: options without help"


@pytest.mark.parametrize("page", ["README.md", "docs"])
def test_every_command_shown_in_the_docs_exists(page):
    path = ROOT / page
    for file in [path] if path.is_file() else sorted(path.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        typed = "\n".join(re.findall(r"(?ms)^```(?:sh|bash|console)\n(.*?)^```", text))
        shown = re.findall(r"^\s*(?:\$ )?swarmctl(?: -i \S+)? ([a-z]+)", typed, re.MULTILINE)
        assert set(shown) <= set(COMMANDS), file
