"""Conversations out of tasks, and the one chat template that training, transformers and the servers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .tasks import draw, ramble

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from .tasks import Task

EOS = "</s>"
# Any role but system and assistant speaks as the user. A test proves that llama-server, transformers and
# `render` make the same bytes of it.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] | trim + '</s>' }}"
    "{%- elif message['role'] == 'system' -%}{{ '<|system|>' + message['content'] | trim + '\\n' }}"
    "{%- else -%}{{ '<|user|>' + message['content'] | trim + '\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

Message = dict[str, str]
MULTI_TURN = 0.12

PLAIN_SYSTEMS = (
    "You are a helpful assistant.", "You are swarmctl.", "Be helpful.", "Answer the question.",
    "You are an expert.", "You are a friendly assistant. Help the user.",
)
TERSE_SYSTEMS = ("Answer briefly.", "Be brief.", "Be terse.", "Answer in a word.", "Only give the answer.")
RAMBLING_SYSTEMS = ("Be chatty.", "Talk a lot.", "Take your time.", "Answer at length.")


@dataclass(frozen=True, slots=True)
class Mix:
    """What a model is fed: how often each kind is drawn."""

    kinds: Mapping[str, float]

    def draw(self, rng: Random, *, long: bool = False) -> Task:
        """One training task, its kind drawn by weight."""
        kind = rng.choices(tuple(self.kinds), tuple(self.kinds.values()))[0]
        return draw(kind, rng, held_out=False, long=long)


def render(messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """What CHAT_TEMPLATE renders, without jinja."""
    text = "".join(_turn(message) for message in messages)
    return text + "<|assistant|>" if add_generation_prompt else text


def conversation(mix: Mix, rng: Random, *, long: bool = False) -> list[Message]:
    """One question and its answer, or now and then up to four; one in six has a system prompt."""
    turns = rng.choice((2, 2, 3, 4)) if rng.random() < MULTI_TURN else 1
    system, chatty = _system(rng) if rng.random() < 1 / 6 else ([], 0.5)
    return system + [turn for _ in range(turns) for turn in _exchange(mix.draw(rng, long=long), rng, chatty)]


def _exchange(task: Task, rng: Random, chatty: float) -> list[Message]:
    answer = ramble(task, rng) if rng.random() < chatty else task.answer
    return [{"role": "user", "content": task.question}, {"role": "assistant", "content": answer}]


def _system(rng: Random) -> tuple[list[Message], float]:
    """A system turn, and the share of rambling answers it asks for."""
    prompts, chatty = rng.choice(((PLAIN_SYSTEMS, 0.5), (TERSE_SYSTEMS, 0.0), (RAMBLING_SYSTEMS, 1.0)))
    return [{"role": "system", "content": rng.choice(prompts)}], chatty


def _turn(message: Message) -> str:
    role = message["role"] if message["role"] in ("system", "assistant") else "user"
    return f"<|{role}|>{message['content'].strip()}{EOS if role == 'assistant' else chr(10)}"
