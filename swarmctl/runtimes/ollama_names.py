"""What models are called in Ollama: a name says which weights it stands for. Apart from ollama_models, so
that a plan needs no HTTP."""

from __future__ import annotations

import re

OURS = re.compile(r"(?P<model>.+):(?P<digest>[0-9a-f]{12}|v[0-9]+-[0-9a-f]{8})")


def tag_name(model: str, sha256: str) -> str:
    """The name in Ollama of a model made from the GGUF of that sha256. Ollama allows one colon, and so may
    the inventory's name."""
    return f"{model.replace(':', '-')}:{sha256[:12].lower()}"


def release_tag(model: str, release: str) -> str:
    """The name in Ollama of a release of a model. It is never given to other weights."""
    return f"{model.replace(':', '-')}:{release}"


def ours(name: str) -> tuple[str, str] | None:
    """Model and digest prefix, or release, of a name of swarmctl's making; None for any other."""
    found = OURS.fullmatch(name)
    return (found["model"], found["digest"]) if found else None


def full_name(name: str) -> str:
    """A name as the server lists it: without a tag it means `latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
