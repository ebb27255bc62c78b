"""What may load before a question leaves: these lists are why `--help` and `ask` answer at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Each of these costs tens to thousands of CPU milliseconds to import, and none is needed to send a request.
HEAVY = frozenset({
    "torch", "transformers", "numpy", "duckdb", "fabric", "invoke", "paramiko", "cryptography", "pydantic",
    "ray", "rich", "yaml", "httpx", "requests", "urllib3", "ollama", "asyncio", "multiprocessing", "unittest",
})
ASK_PATH = ("swarmctl.cli.ask", "swarmctl.verbs.ask", "swarmctl.runtimes.llamacpp", "swarmctl.fleet.snapshot",
            "swarmctl.routing", "swarmctl.ledger.terminal")
#: What a question loads of ours, with a little room: modules, dataclasses, patterns compiled beforehand.
MODULES, CLASSES, PATTERNS = 73, 71, 6


def heavy_modules(code: str) -> set[str]:
    """Run Python code in a new process and name the heavy packages it loaded."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr.splitlines()[-1])
    return {name.partition(".")[0] for name in loaded} & HEAVY


def command_line(*argv: str) -> str:
    """Code that runs the command line in its own process, as the installed program does."""
    return ("import sys\nfrom swarmctl.cli.main import main\n"
            f"sys.argv = ['swarmctl', *{list(argv)!r}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code")


@pytest.mark.parametrize("argv", ["--help", "--version", "ask --help", "rate --help", "chat --help"])
def test_the_command_line_starts_without_anything_heavy(argv):
    assert heavy_modules(command_line(*argv.split())) == set()


@pytest.mark.parametrize("module", ASK_PATH)
def test_nothing_on_the_way_of_a_question_is_heavy(module):
    assert heavy_modules(f"import {module}") == set()


def test_a_question_loads_nothing_that_plans_fits_or_opens_tunnels():
    names = ("swarmctl.routing.calibration", "swarmctl.routing.fitting", "swarmctl.routing.cascade",
             "swarmctl.fleet.ssh_config", "swarmctl.fleet.converge", "swarmctl.verbs.up")
    check = f"import swarmctl.fleet.tunnels\nassert [name for name in {names!r} if name in sys.modules] == []"
    assert heavy_modules(f"{command_line('ask', '--help')}\n{check}") == set()


def test_what_a_question_defines_stays_few():
    """Each dataclass costs a third of a millisecond of every question, each pattern a tenth or more."""
    count = """
import dataclasses, re
made = {"classes": 0, "patterns": 0}
process, compiled = dataclasses._process_class, re.compile
def counted(cls, *rest):
    made["classes"] += cls.__module__.startswith("swarmctl")
    return process(cls, *rest)
def noted(*rest):
    made["patterns"] += sys._getframe(1).f_globals["__name__"].startswith("swarmctl")
    return compiled(*rest)
dataclasses._process_class, re.compile = counted, noted
import swarmctl.fleet.tunnels, swarmctl.runtimes.llamacpp
"""
    check = "modules = [name for name in sys.modules if name.startswith('swarmctl')]\n" \
            f"assert len(modules) <= {MODULES} and made['classes'] <= {CLASSES}, (len(modules), made)\n" \
            f"assert made['patterns'] <= {PATTERNS}, made"
    assert heavy_modules(f"import sys\n{count}\n{command_line('ask', '--help')}\n{check}") == set()


def test_a_command_at_work_collects_again_and_leaves_alone_what_was_loaded():
    check = "import gc\nassert gc.isenabled()\nassert gc.get_freeze_count() > 1000"
    assert "torch" not in heavy_modules(f"{command_line('inventory', 'schema')}\n{check}")


def test_help_loads_no_command():
    check = "assert [name for name in sys.modules if name.startswith('swarmctl.verbs')] == []"
    assert heavy_modules(f"{command_line('--help')}\n{check}") == set()
