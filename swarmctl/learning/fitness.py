"""Whether a finished model may be served at all, from what its job measured of it. Pure.

Every bound here stops something that was seen to reach users elsewhere: another template than training saw
(ollama#6823, unsloth#3899), a tokenizer without an end, a quantisation that changed the model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: quantisation → the largest mean Kullback-Leibler divergence from 16 bits that is let pass, in nats a token
KL_BOUNDS: Mapping[str, float] = {"F32": 0.001, "F16": 0.001, "BF16": 0.005, "Q8_0": 0.01, "Q6_K": 0.03,
                                  "Q5_K_M": 0.06, "Q5_K_S": 0.08, "Q4_K_M": 0.15, "Q4_K_S": 0.2, "Q4_0": 0.3}
LOOSEST = 0.5
SHOWN = 120


def unfit(stages: Mapping[str, Mapping[str, Any]], kind: str, max_kl: float | None = None) -> tuple[str, ...]:
    """Why a model must not be served, each reason with its numbers; empty where it may.

    `stages` is what the job's stages gave: quantise, perplexity, likeness and verify. Of an adapter `kind` is
    the quantisation of the base that it goes over.
    """
    broken = stages.get("verify", {}).get("broken") or stages.get("likeness", {}).get("broken")
    if broken:
        return (str(broken),)
    return (*_template(stages.get("verify", {})), *_ending(stages.get("verify", {})),
            *_divergence(stages.get("perplexity", {}), kind, max_kl),
            *_likeness(stages.get("likeness", {}), kind, max_kl))


def kl_bound(kind: str, max_kl: float | None = None) -> float:
    """The divergence that is let pass for a quantisation, in nats."""
    return KL_BOUNDS.get(kind, LOOSEST) if max_kl is None else max_kl


def _template(verify: Mapping[str, Any]) -> Iterator[str]:
    changed, differ = verify.get("changed") or [], verify.get("differ") or []
    if changed:
        yield (f"its chat template is not the one it was trained with: {len(changed)} conversations are "
               f"rendered otherwise, such as {_shown(changed[0])}")
    if differ:
        what = "tokens" if isinstance(differ[0]["trained"], list) else "chat template"
        yield (f"the served {what} of {len(differ)} of {verify.get('conversations')} conversations differ "
               f"from what its tokenizer makes of them, such as {_shown(differ[0])}")


def _shown(one: Mapping[str, Any]) -> str:
    """The first place where two renderings part."""
    trained, served = one["trained"], one["served"]
    pairs = zip(trained, served, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(trained), len(served)))
    begin = max(0, same - 20)
    return (f"{_cut(trained[begin:])} in training and {_cut(served[begin:])} when served "
            f"(they part at position {same})")


def _cut(what: Any) -> str:  # noqa: ANN401  text or token ids
    text = repr(what)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _ending(verify: Mapping[str, Any]) -> Iterator[str]:
    ending = verify.get("ending")
    if ending is not None and ending.get("id") is None:
        yield "its tokenizer has lost its end-of-sequence token: an answer would never end"
    elif ending is not None and verify.get("served_ending") not in ("", ending["token"]):
        yield (f"its tokenizer ends with {ending['token']!r}, and the GGUF with {verify['served_ending']!r}")
    endless = [one for one in verify.get("smoke") or [] if one["finish"] != "stop"]
    if endless:
        one = endless[0]
        yield (f"{len(endless)} of {len(verify['smoke'])} answers did not end by themselves within "
               f"{one['tokens']} tokens, such as that to {one['messages'][-1]['content'][:60]!r}: "
               f"{one['answer'][:SHOWN]!r}")
    empty = [one for one in verify.get("smoke") or [] if not one["answer"].strip()]
    if empty:
        yield f"{len(empty)} of {len(verify['smoke'])} answers were empty"


def _likeness(measured: Mapping[str, Any], kind: str, max_kl: float | None) -> Iterator[str]:
    """Whether the served base with the adapter is what was trained, and not the base alone."""
    mean = measured.get("kl_mean")
    if mean is None:
        return
    bound = kl_bound(kind, max_kl)
    if not math.isfinite(mean) or mean > bound:
        yield (f"over the {kind} weights that hosts hold, the adapter is not what was trained: its "
               f"log-probabilities diverge by {mean:.4g} nats a token, and {bound:g} is the bound; deploy it "
               "merged, without --as-adapter, or over its own base")
    elif measured["kl_base"] <= mean:
        yield (f"over the {kind} weights that hosts hold, the adapter changes less than their quantisation: "
               f"{mean:.4g} nats a token from what was trained, {measured['kl_base']:.4g} from the base")


def _divergence(measured: Mapping[str, Any], kind: str, max_kl: float | None) -> Iterator[str]:
    mean = measured.get("kl_mean")
    if mean is None:
        return
    bound = kl_bound(kind, max_kl)
    if not math.isfinite(mean) or mean > bound:
        ratio = measured.get("perplexity_ratio", math.nan)
        yield (f"{kind} changes it too much: a mean divergence of {mean:.4g} nats from 16 bits, and "
               f"{bound:g} is the bound (perplexity x {ratio:.3g}); a finer quantisation helps, and --max-kl "
               "sets another bound")
