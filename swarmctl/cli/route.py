"""`swarmctl route`: explain, eval, fit, and which version is used."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.ask import find_swarm, read_question, say
from swarmctl.cli.streaming import SilentSink, table
from swarmctl.dispatch.question import Asked
from swarmctl.errors import LockBusy
from swarmctl.ledger import routers
from swarmctl.verbs import route as verb

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.evaluation.replay import Calibration, Interval, Replayed
    from swarmctl.verbs.route import Explained

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
                  no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]},
                  help="What the router believes of each model and why, how good that has been, and learning "
                       "it anew from all ratings.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
#: How long a person waits for another fit to end.
WAIT = 60.0


@app.command()
def explain(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(help="The question; without one, stdin.",
                                                       show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show where a question would go and what is believed of each model; nobody is asked.

    For each model: the expected share of good answers with its 95 % interval, what that follows from (the
    first guess, ratings, what was learned of prompts like this one), and the price that it makes.
    """
    context: Context = ctx.obj
    text, attachments = read_question(prompt, [], with_pipe=False)
    found = verb.explain(find_swarm(context), Asked(text, tuple(attachments)), context.clock())
    if as_json:
        _json(_explained(found))
        return
    lines = [f"{found.sort.category}: {found.sort.reason}", _learned(found), ""]
    for price in {p.candidate.model + p.candidate.digest: p for p in reversed(found.way.prices)}.values():
        release = f":{price.candidate.release}" if price.candidate.release else ""
        lines.append(f"{price.candidate.model}{release}: {price.good:.0%} good "
                     f"({price.low:.0%} to {price.high:.0%}): {price.why}")
    chosen = found.way.chosen.candidate
    sys.stdout.write("\n".join([*lines, "", table(found.way).rstrip("\n"), *(
        f"  out: {out.candidate.model} on {out.candidate.host}: {out.reason}" for out in found.way.excluded),
        f"→ {chosen.model} on {chosen.host}: {found.way.reason}"]) + "\n")


@app.command("eval")
def evaluate(ctx: typer.Context, as_json: Json = False) -> None:
    """Replay the journal: what the router would have believed of each rated answer just before it was given.

    Every eighth of the ratings is judged by a fit on those before it, beside the heuristic (first guess and
    counts). Only answers that were given were rated: calibration speaks of the models that answered, and the
    choice between models is judged on prompts where several were rated.
    """
    context: Context = ctx.obj
    found = verb.evaluate(context.paths, lambda step, steps: say(f"replaying, {step} of {steps}"))
    if as_json:
        _json(_replayed(found))
        return
    sys.stdout.write("\n".join(_report(found)) + "\n")


@app.command()
def fit(
    ctx: typer.Context,
    background: Annotated[bool, typer.Option(
        "--background", help="Say nothing, and end at once, where another process is fitting.")] = False,
    as_json: Json = False,
) -> None:
    """Learn from every rating so far, and use it from the next question on.

    This happens by itself after enough new ratings. Vectors are those that `swarmctl topics` made. Earlier
    versions are kept: `swarmctl route use`.
    """
    context: Context = ctx.obj
    try:
        found = verb.fit(context.paths, context.clock, say, wait=0.0 if background else WAIT)
    except LockBusy:
        if background:
            return
        raise
    made = found.weights
    models = sorted({name for head in made.heads for name in head.models})
    vectors = any(head.embedder for head in made.heads)
    if as_json:
        _json({"version": made.version, "ratings": made.ratings, "prompts": found.prompts, "models": models,
               "left_out": found.left_out, "vectors": vectors, "seconds": round(found.seconds, 2)})
        return
    out = f"; {found.left_out} votes of floods left out" if found.left_out else ""
    sys.stdout.write(f"version {made.version}: {made.ratings:,} ratings of {found.prompts:,} prompts, "
                     f"{len(models)} models, {'with' if vectors else 'without'} vectors, "
                     f"{found.seconds:.1f} s{out}\n")


@app.command()
def use(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(
        help="A version; `none` for first guesses and counts alone. Without one, they are listed.",
        show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the versions that are kept, or use another one from the next question on."""
    context: Context = ctx.obj
    if version:
        routers.use(context.paths, version)
    live = routers.read_weights(context.paths)
    rows = [{"version": one, "live": bool(live and live.version == one)}
            for one in routers.versions(context.paths)]
    if as_json:
        _json({"versions": rows})
        return
    sys.stdout.write("".join(f"{row['version']}{'  live' if row['live'] else ''}\n" for row in rows))
    if not any(row["live"] for row in rows):
        say("none is used: first guesses and counts alone")


@app.command(hidden=True)
def shadow(
    ctx: typer.Context,
    exchange: Annotated[str, typer.Argument(help="The exchange's id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model that answers.")],
    host: Annotated[str | None, typer.Option("--host", "-H", help="On this host only.")] = None,
) -> None:
    """Have a model answer what an exchange asked, beside it."""
    context: Context = ctx.obj
    verb.shadow(find_swarm(context), exchange, model, host, SilentSink(sys.stdout, sys.stderr),
                clock=context.clock)


def _learned(found: Explained) -> str:
    if not found.version:
        return "nothing was learned yet: first guesses and counts (swarmctl route fit)"
    how = "counts and a vector" if found.with_vector else "counts"
    return f"version {found.version}, learned from {found.ratings:,} ratings; the prompt seen by {how}"


def _report(found: Replayed) -> list[str]:
    lines = [f"{found.ratings:,} ratings of {found.prompts:,} prompts, each judged by what was known before",
             "", "           Brier (95 %)             calibration error"]
    lines += [f"{name}  {_range(one.brier)}     {one.ece:.3f}" for name, one in
              (("heuristic", found.heuristic), ("learned  ", found.learned))]
    lines += [f"gain       {_range(found.gain)}     (above 0: learning helps)", ""]
    if not (found.pairs and found.better and found.regret):
        return [*lines, "No prompt has ratings of several models: which would have been better is not known.",
                "`swarmctl compare` makes such pairs, and so does exploration."]
    return [*lines, f"{found.pairs:,} prompts have ratings of several models. There the learned choice was",
            f"  {_range(found.better)} better than the heuristic's (share of good answers),",
            f"  {_range(found.regret)} worse than the best; the two differ on {found.moved:.0%}.",
            "Prompts that were compared or shadowed are no fair sample of all."]


def _range(one: Interval) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _explained(found: Explained) -> dict[str, Any]:
    from swarmctl.dispatch.record import route_record

    return {"category": found.sort.category, "reason": found.sort.reason, "version": found.version,
            "ratings": found.ratings, "vector": found.with_vector, **route_record(found.way)}


def _replayed(found: Replayed) -> dict[str, Any]:
    return {"ratings": found.ratings, "prompts": found.prompts, "heuristic": _calibration(found.heuristic),
            "learned": _calibration(found.learned), "gain": _interval(found.gain), "pairs": found.pairs,
            "better": _interval(found.better), "regret": _interval(found.regret),
            "moved": round(found.moved, 4)}


def _calibration(one: Calibration) -> dict[str, Any]:
    return {"brier": _interval(one.brier), "ece": round(one.ece, 4)}


def _interval(one: Interval | None) -> dict[str, float] | None:
    if one is None:
        return None
    return {"value": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4)}


def _json(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
