"""What is asked, what comes back, and what is recorded of it. Pure data.

`ChatRequest` goes to a runtime and `Chunk`s come back; an `Exchange` is the row that remembers both. `Rating`
and `Comparison` refer to exchanges by id. Every row turns into one flat-keyed JSON object with `to_record`.
swarmctl passes tool calls through and runs none: a `ToolCall` goes out, its result comes back as a `Message`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD_VERSION = 1
CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"

Category = Literal["routine", "complex", "code"]
CATEGORIES: tuple[Category, ...] = ("routine", "complex", "code")
Finish = Literal["stop", "length", "tool_calls", "cancelled", "error"]


def new_id(milliseconds: int, entropy: int) -> str:
    """Make a sortable id of 16 Crockford base-32 characters: 10 of time (ms since 1970), 6 of entropy (30
    bits)."""
    value = (milliseconds & (1 << 50) - 1) << 30 | entropy & (1 << 30) - 1
    return "".join(CROCKFORD[value >> shift & 31] for shift in range(75, -5, -5))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that a model asks to have called. `arguments` is JSON text, as the model wrote it: an object
    where the model kept to the tool's schema, and it need not have."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. An assistant's may hold `tool_calls`; one of role tool is the result of the
    call `tool_call_id` of the function `name`. `images` are data URLs (data:image/png;base64,…)."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """As part of a journal's row: what is not set is left out, and of an image only its type, hash and
        size are kept."""
        said = {key: value for key, value in asdict(self).items() if value or key in ("role", "content")}
        return said | ({"images": [image_record(one) for one in self.images]} if self.images else {})


def image_record(url: str) -> dict[str, Any]:
    """What is remembered of an image: its media type, and the hash and length of its base64 text."""
    kind, _, text = url.removeprefix("data:").partition(";base64,")
    return {"type": kind, "base64_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "bytes": len(text) * 3 // 4 - text.count("=")}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, beside temperature and seed. None means the server's default."""

    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None

    def params(self) -> dict[str, Any]:
        """Those that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked of a model. None means the server's default; `schema` is a JSON Schema the answer must
    satisfy.

    `tools` are function definitions in OpenAI's form ({"type": "function", "function": {name, description,
    parameters}}). `tool_choice` is auto, none, required or the name of the one that must be called.
    `logprobs` asks for the log-probability of every token, `top_logprobs` for so many alternatives besides; a
    server that cannot tell them answers without. `think` is whether a model that can reason does so first, or
    how hard (low, medium, high). With `raw` there is one message, and the model goes on from its text without
    a chat template. A last message of the assistant is the answer's beginning, which the model goes on from.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    stop: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    sampling: Sampling = DEFAULT_SAMPLING
    think: bool | str | None = None
    raw: bool = False

    def params(self) -> dict[str, Any]:
        """The parameters as recorded with the exchange: everything but the messages, of which only how many
        images they hold; without the unset ones."""
        found = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed,
                 "schema": self.schema, "stop": list(self.stop) or None, "tools": list(self.tools) or None,
                 "tool_choice": self.tool_choice, "logprobs": self.logprobs or None,
                 "top_logprobs": self.top_logprobs, "think": self.think, "raw": self.raw or None,
                 "images": sum(len(turn.images) for turn in self.messages) or None}
        return {key: value for key, value in found.items() if value is not None} | self.sampling.params()

    def characters(self) -> int:
        """The length of all the text that the model reads: messages, calls and the definitions of tools."""
        said = sum(len(turn.content) + sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
                   for turn in self.messages)
        return said + (len(json.dumps(self.tools)) if self.tools else 0)


@dataclass(frozen=True, slots=True)
class Timings:
    """One answer's clock. Seconds and tokens; None where the server does not say. `queue_seconds`, the wait
    for a slot of ours, comes before all the others and is in none of them."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_seconds: float | None = None
    completion_tokens: int | None = None
    decode_seconds: float | None = None
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float | None = None
    queue_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer, the natural logarithm of its probability, and the likeliest ones at its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. The last one, and only it, has `finish`. `tool_calls` are whole: each is
    sent once, as soon as its arguments are complete. `logprob` is the natural logarithm of the model's own
    probability of this piece, before temperature (of its tokens' sum, where it has several); `rival` that of
    the likeliest other token in its first token's place. `tokens` says the same token by token. `thought` is
    reasoning that comes before the answer."""

    text: str = ""
    logprob: float | None = None
    rival: float | None = None
    finish: Finish | None = None
    timings: Timings | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Token, ...] = ()
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A candidate that was tried and failed; `tokens` were already shown when it did. One that was `hedged`
    did not fail: a second request beside it was quicker."""

    host: str
    model: str
    error: str
    tokens: int = 0
    hedged: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer, with everything needed to learn from it later."""

    id: str
    at: str
    messages: tuple[Message, ...]
    answer: str
    finish: Finish
    category: Category
    host: str
    runtime: str
    model: str
    digest: str
    template: str
    conversation: str
    parent: str | None = None
    terminal: str | None = None
    via: str = "ask"
    error: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    attempts: tuple[Attempt, ...] = ()
    route: Mapping[str, Any] = field(default_factory=dict)
    tool_calls: tuple[ToolCall, ...] = ()
    thought: str = ""

    def to_record(self) -> dict[str, Any]:
        """The journal's row. `thought`, the reasoning before the answer, is there where there was any."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}  # asdict would copy all of it
        row = {"v": RECORD_VERSION, "kind": "exchange", **plain,
               "messages": tuple(turn.to_record() for turn in self.messages), "timings": asdict(self.timings),
               "attempts": tuple(asdict(one) for one in self.attempts),
               "tool_calls": tuple(asdict(one) for one in self.tool_calls)}
        return row if self.thought else {key: value for key, value in row.items() if key != "thought"}

    def answer_message(self) -> Message:
        """The answer as the conversation's next turn."""
        return Message("assistant", self.answer, self.tool_calls)


@dataclass(frozen=True, slots=True)
class Rating:
    """A person's word on one answer. `score` runs from -1 (bad) to 1 (good); 1 to 5 stars map onto it evenly.

    Model, digest and category are copied from the exchange, so that counting ratings needs no join.
    `undoes` names the rating that this one takes back; then all else but `exchange` is as in that one.
    """

    id: str
    at: str
    exchange: str
    model: str
    digest: str
    category: Category
    host: str
    score: float | None = None
    stars: int | None = None
    comment: str | None = None
    correction: str | None = None
    undoes: str | None = None
    terminal: str | None = None

    def to_record(self) -> dict[str, Any]:
        """The journal's row."""
        return {"v": RECORD_VERSION, "kind": "rating", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, seen blind. `left` is the exchange that was shown on the left (or first)."""

    id: str
    at: str
    a: str
    b: str
    model_a: str
    model_b: str
    category: Category
    left: str
    choice: Literal["a", "b", "tie", "both-bad"]
    comment: str | None = None
    terminal: str | None = None
    digest_a: str = ""
    digest_b: str = ""

    def to_record(self) -> dict[str, Any]:
        """The journal's row."""
        return {"v": RECORD_VERSION, "kind": "comparison", **asdict(self)}


def stars_to_score(stars: int) -> float:
    """1 star is -1, 3 stars 0, 5 stars 1."""
    return (stars - 3) / 2
