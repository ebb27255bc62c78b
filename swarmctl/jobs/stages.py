"""The stages there are, and running those of a job, each once.

A stage is a function `stage(spec, folder) -> dict`: what it returns stands in result.json under its name,
and a job that is run again does not repeat it. It must be able to begin again after being killed anywhere.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

#: stage → module:function
STAGES: Mapping[str, str] = {
    "prune": "swarmctl.jobs.prune:prune",
    "sft": "swarmctl.jobs.training:sft",
    "dpo": "swarmctl.jobs.training:dpo",
    "kto": "swarmctl.jobs.training:kto",
    "merge": "swarmctl.jobs.merge:merge",
    "compare": "swarmctl.jobs.prune:compare",
    "gguf": "swarmctl.jobs.gguf:gguf",
    "imatrix": "swarmctl.jobs.imatrix:imatrix",
    "quantise": "swarmctl.jobs.quantise:quantise",
    "perplexity": "swarmctl.jobs.perplexity:perplexity",
    "adapter": "swarmctl.jobs.adapter:adapter",
    "likeness": "swarmctl.jobs.adapter:likeness",
    "verify": "swarmctl.jobs.verify:verify",
}


def run_stages(spec: Spec, folder: Folder) -> dict[str, Any]:
    """Do every stage that has no result yet; what all of them gave, by name. Raises JobError."""
    unknown = [name for name in spec.stages if name not in STAGES]
    if unknown:
        raise JobError(f"this swarmctl has no stage {', '.join(unknown)}")
    return {name: _once(name, spec, folder) for name in spec.stages}


def _once(name: str, spec: Spec, folder: Folder) -> dict[str, Any]:
    before = folder.stage(name)
    if before is not None:
        return before
    folder.say(name, event="begun")
    module, function = STAGES[name].split(":")
    gave: dict[str, Any] = getattr(import_module(module), function)(spec, folder)
    folder.end_stage(name, gave)
    folder.say(name, event="done")
    return gave
