"""`swarmctl deploy`, `promote`, `canary`, and the model's half of `rollback`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.confirm import agreed
from swarmctl.errors import SomeHostsFailed, SwarmError
from swarmctl.fleet.person import who

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.cli.context import Context
    from swarmctl.cli.up import Shown
    from swarmctl.verbs.deploy import Deployed, Planned
    from swarmctl.verbs.releases import Changed, Desk

AS_JSON = typer.Option("--json", help="Print one JSON document.")
MAKE = "make"
YES = typer.Option("--yes", "-y", help="Do not ask.")


def deploy(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(
        metavar="RUN|FOLDER|FILE", help="A run that `train` made, a Hugging Face folder, or a GGUF.")],
    model: Annotated[str | None, typer.Option(
        "--model", "-m", metavar="NAME", help="The inventory's model.", show_default="the run's")] = None,
    quantize: Annotated[str, typer.Option(
        "--quantize", "-q", metavar="KIND", help="Q4_K_M, Q8_0, F16, Q5_K_M, Q6_K …")] = "Q4_K_M",
    share: Annotated[float, typer.Option(
        min=0.0, max=1.0, help="The canary's part of the conversations; 0 serves it to nobody yet.")] = 0.1,
    host: Annotated[list[str] | None, typer.Option(
        "--host", "-H", metavar="NAME", help="The canary only there; may be given several times.")] = None,
    max_kl: Annotated[float | None, typer.Option(
        "--max-kl", min=0.0, help="How far quantising may move it from 16 bits, in nats a token.",
        show_default="by kind")] = None,
    imatrix: Annotated[str | None, typer.Option(
        metavar="make|FILE", help="Quantise by an importance matrix: made of the run's training set, or a "
        "file.", show_default=False)] = None,
    as_adapter: Annotated[bool, typer.Option(
        "--as-adapter", help="Leave the weights as they are served and put the run's LoRA adapter over "
        "them; --quantize does not apply.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done.")] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Quantise trained weights, prove them fit, and serve them as the model's canary.

    Refused, with the reason recorded, is what renders another chat template than training saw, does not end
    its answers, has moved too far from its 16-bit self, or is not whole. Cut anywhere, run it again. Exits
    with 3 where some hosts do not serve it yet; `up` completes them.
    """
    from swarmctl.fleet.deployable import model_of
    from swarmctl.verbs import deploy as verb

    context: Context = ctx.obj
    wish = verb.Wish(source, model or model_of(context.paths, source), who(), quantize, share,
                     tuple(host or ()), max_kl, imatrix=Path(imatrix) if imatrix else None,
                     as_adapter=as_adapter)
    if imatrix == MAKE:
        wish = replace(wish, imatrix=None, make_imatrix=True)
    if dry_run:
        planned = verb.plan(context.paths, context.inventory, wish)
        typer.echo(json.dumps(asdict(planned), indent=1) if as_json else plan_text(planned, wish.share))
        return
    with showing(quiet=as_json) as shown:
        done = verb.deploy(context.paths, context.inventory, wish, bring_up(context, shown), context.clock,
                           shown.note, shown.event)
    typer.echo(json.dumps(deployed_record(done), indent=1) if as_json else deployed_text(done))
    _verdict(done.failed)


def promote(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The inventory's model.")],
    release: Annotated[str | None, typer.Argument(
        metavar="[RELEASE]", help="A release from its history.", show_default="its canary")] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")] = "",
    yes: Annotated[bool, YES] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Let a model's canary, or an older release, serve it for everybody.

    `rollback MODEL` undoes it: the release before stays on the hosts.
    """
    from swarmctl.verbs import releases as verb

    question = f"{release or 'the canary'} serves {model} to everybody then. Promote it?"
    if not yes and sys.stdin.isatty() and not agreed(question):
        raise SwarmError("nothing was promoted")
    with desk(ctx.obj, quiet=as_json) as at:
        done = verb.promote(at, model, release, reason=reason)
    show_change(done, as_json=as_json)


def canary(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The inventory's model.")],
    share: Annotated[float | None, typer.Option(
        min=0.0, max=1.0, help="Give it that part of the conversations.", show_default=False)] = None,
    act: Annotated[bool, typer.Option(
        "--act", help="Promote it or take it back where the votes are clear.")] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Say what people's votes make of a model's canary, and with --act do what follows.

    Votes are blind comparisons with the champion (`swarmctl compare`), or where there are none, ratings. They
    may be read at any time: the evidence stays valid however often that is.
    """
    from swarmctl.verbs import releases as verb

    context: Context = ctx.obj
    if share is not None:
        with desk(context, quiet=as_json) as at:
            verb.share(at, model, share)
    found = verb.judged(context.paths, context.inventory, model)
    record: dict[str, Any] = {"model": model, "decision": found.decision, "reasons": list(found.reasons)}
    if not act or found.decision == "keep":
        typer.echo(json.dumps(record,
                              indent=1) if as_json else f"{found.decision}: {'; '.join(found.reasons)}")
        return
    sys.stderr.write(f"{'; '.join(found.reasons)}\n")
    with desk(context, quiet=as_json) as at:
        change = verb.promote if found.decision == "promote" else verb.rollback
        done = change(at, model, reason="; ".join(found.reasons), evidence=record)
    show_change(done, as_json=as_json)


def roll_back_model(context: Context, model: str, reason: str, *, as_json: bool) -> None:
    """`swarmctl rollback MODEL`."""
    from swarmctl.verbs import releases as verb

    with desk(context, quiet=as_json) as at:
        done = verb.rollback(at, model, reason=reason)
    show_change(done, as_json=as_json)


@contextmanager
def desk(context: Context, *, quiet: bool) -> Iterator[Desk]:
    """What changing a model's standing needs, while its progress is shown."""
    from swarmctl.verbs.releases import Desk

    with showing(quiet=quiet) as shown:
        yield Desk(context.paths, context.inventory, bring_up(context, shown), context.clock, who(),
                   shown.note)


def show_change(done: Changed, *, as_json: bool) -> None:
    """What serves now, and where not yet."""
    if as_json:
        failed = {host: error.message for host, error in done.failed.items()}
        typer.echo(json.dumps({"model": done.model, "serves": done.serves, "before": done.before,
                               "failed": failed}, indent=1))
    else:
        typer.echo(f"{done.model} is served by {done.serves}, and no longer by {done.before}")
    _verdict(done.failed)


def plan_text(planned: Planned, share: float) -> str:
    """What a deploy would do, as a person reads it."""
    return "\n".join((
        f"convert {planned.source} on {planned.where}, {_how(planned.kind)}, verify it",
        f"serve it as {planned.release} beside {planned.beside} on {', '.join(planned.hosts)}",
        f"inspect it there, then give it {share:.0%} of the conversations"))


def _how(kind: str) -> str:
    return kind if " " in kind else f"quantise it to {kind}"


def deployed_text(done: Deployed) -> str:
    """What is served where, and what was measured of it."""
    where = ", ".join(host for host in done.hosts if host not in done.failed)
    if done.already:
        return f"{done.model}: {done.release} is served already"
    measured = done.stages.get("perplexity", {})
    lines = [f"{done.model}: {done.release} ({done.size / 1e6:,.1f} MB) is served on {where} "
             f"with {done.share:.0%} of the conversations"]
    if "kl_mean" in measured:
        lines.append(f"divergence from 16 bits {measured['kl_mean']:.4f} nats a token, perplexity x "
                     f"{measured['perplexity_ratio']:.3f}, same likeliest token {measured['same_top']:.1f} %")
    like = done.stages.get("likeness", {})
    if "kl_mean" in like:
        lines.append(f"an adapter: {like['kl_mean']:.2g} nats a token from what was trained, "
                     f"{like['kl_base']:.2g} from the weights without it")
    matrix = done.stages.get("imatrix")
    if matrix:
        lines.append(f"importance matrix of {matrix['tokens']:,} tokens of the {matrix['from']}, for "
                     f"{matrix['tensors']} tensors")
    fell = done.stages.get("quantise", {}).get("fell_back")
    if fell:
        lines.append(f"{fell} of {done.stages['quantise']['tensors']} tensors kept a larger kind: "
                     "their rows do not divide into its blocks")
    return "\n".join(lines)


def deployed_record(done: Deployed) -> dict[str, Any]:
    """The same for --json."""
    return {"model": done.model, "release": done.release, "sha256": done.sha256, "size": done.size,
            "share": done.share, "hosts": list(done.hosts), "already": done.already,
            "failed": {host: error.message for host, error in done.failed.items()}, "stages": done.stages}


@contextmanager
def showing(*, quiet: bool) -> Iterator[Shown]:
    """Progress on stderr while the block runs."""
    from swarmctl.cli.progress_view import Progress
    from swarmctl.cli.up import Shown

    with Progress.on(sys.stderr) as progress:
        yield Shown(progress, quiet=quiet)


def bring_up(context: Context, shown: Shown) -> Any:  # noqa: ANN401  a fleet.roles.BringUp
    """`up` as other verbs are handed it."""
    from swarmctl.verbs.up import up

    return partial(up, context.paths, context.inventory, _NoPlan(shown))


class _NoPlan:
    """Shows what `up` does, without its plan."""

    def __init__(self, shown: Shown) -> None:
        self.note, self.event = shown.note, shown.event

    def plan(self, plans: Any) -> None:  # noqa: ANN401
        """Nothing: a person asked for a release, not for a plan."""


def _verdict(failed: Mapping[str, SwarmError]) -> None:
    """Say what failed and exit with 3."""
    for host, error in failed.items():
        sys.stderr.write(f"{host}: {error.message}{f' → {error.hint}' if error.hint else ''}\n")
    if failed:
        raise SomeHostsFailed(f"not yet on {', '.join(failed)}", hint="`swarmctl up` completes it there")
