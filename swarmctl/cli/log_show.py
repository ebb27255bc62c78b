"""One exchange as a page of plain text, for `log show`. Pure: records in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.cli.streaming import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.ledger.journal import Record
    from swarmctl.ledger.lookup import Found


def page(found: Found) -> str:
    """The whole exchange. Control characters in what was recorded are made visible."""
    parts = (_head(found.exchange), _talk(found.exchange), _route(found.exchange),
             _ratings(found.ratings), _comparisons(found.comparisons))
    texts = ("".join(f"{printable(line)}\n" for line in part) for part in parts)
    return "\n".join(text for text in texts if text)


def _head(exchange: Record) -> Iterator[str]:
    said = {key: value for key, value in exchange.items() if value not in (None, "", {}, [], ())}
    yield f"exchange      {exchange['id']}  {exchange['at']}  via {said.get('via', '?')}"
    yield f"conversation  {said.get('conversation', '')}" + (
        f"  after {said['parent']}" if "parent" in said else "")
    yield f"answered by   {said.get('model')} on {said.get('host')} ({said.get('runtime')})"
    yield f"weights       {said.get('digest', '')}"
    yield f"template      {said.get('template', '')}"
    yield f"category      {said.get('category', '')}"
    yield f"finish        {said.get('finish', '')}" + (f": {said['error']}" if "error" in said else "")
    if "params" in said:
        yield f"parameters    {_pairs(_brief(said['params']))}"
    if timings := _timings(said.get("timings") or {}):
        yield f"timings       {timings}"
    for attempt in said.get("attempts", ()):
        shown = f" after {attempt['tokens']} tokens" if attempt.get("tokens") else ""
        yield f"failed        {attempt.get('model')} on {attempt.get('host')}{shown}: {attempt.get('error')}"


def _brief(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with tools by their names."""
    tools = [tool.get("function", {}).get("name", "?") for tool in params.get("tools") or ()]
    return {**params, **({"tools": " ".join(tools)} if tools else {})}


def _timings(timings: Mapping[str, Any]) -> str:
    parts = []
    if waited := timings.get("queue_seconds"):
        parts.append(f"waited {waited:.2f} s")
    if (first := timings.get("first_token_seconds")) is not None:
        parts.append(f"first token {first:.2f} s")
    parts += _phase("prompt", timings.get("prompt_tokens"), timings.get("prompt_seconds"))
    if timings.get("cached_tokens"):
        parts.append(f"{timings['cached_tokens']} cached")
    parts += _phase("answer", timings.get("completion_tokens"), timings.get("decode_seconds"))
    if timings.get("load_seconds"):
        parts.append(f"load {timings['load_seconds']:.2f} s")
    if (total := timings.get("total_seconds")) is not None:
        parts.append(f"total {total:.2f} s")
    return ", ".join(parts)


def _phase(name: str, tokens: int | None, seconds: float | None) -> list[str]:
    if tokens is None:
        return []
    speed = f" in {seconds:.2f} s ({tokens / seconds:.0f}/s)" if seconds else ""
    return [f"{name} {tokens} tokens{speed}"]


def _talk(exchange: Record) -> Iterator[str]:
    for message in exchange.get("messages", ()):
        of = f" {message['name']} {message.get('tool_call_id')}" if message.get("name") else ""
        yield f"[{message.get('role')}{of}]"
        for image in message.get("images") or ():
            yield f"image {image.get('type')}, {image.get('bytes')} bytes"
        yield from str(message.get("content", "")).splitlines()
        yield from _calls(message)
    if exchange.get("thought"):
        yield "[thought]"
        yield from str(exchange["thought"]).splitlines()
    yield "[answer]"
    yield from str(exchange.get("answer", "")).splitlines()
    yield from _calls(exchange)


def _calls(said: Mapping[str, Any]) -> Iterator[str]:
    for call in said.get("tool_calls") or ():
        yield f"call {call.get('id')}: {call.get('name')} {call.get('arguments')}"


def _route(exchange: Record) -> Iterator[str]:
    """The prices of the candidates as they were, the chosen first, in seconds but where a unit stands."""
    route = exchange.get("route") or {}
    if not route:
        return
    yield f"route: {route.get('reason', '')}"
    yield from _grid([row for row in route.get("prices", ()) if isinstance(row, dict)])
    for out in route.get("excluded", ()):
        yield f"  out: {out.get('model')} on {out.get('host')}: {out.get('reason')}"


def _ratings(ratings: Sequence[Record]) -> Iterator[str]:
    for rating in ratings:
        if rating.get("undoes"):
            yield f"rating {rating['at']}  took back {rating['undoes']}"
            continue
        stars = f" ({rating['stars']} of 5)" if rating.get("stars") is not None else ""
        yield f"rating {rating['at']}  {rating['id']}  score {rating.get('score')}{stars}"
        for name in ("comment", "correction"):
            if rating.get(name):
                yield f"  {name}: {rating[name]}"


def _comparisons(comparisons: Sequence[Record]) -> Iterator[str]:
    for one in comparisons:
        yield (f"comparison {one['at']}  {one.get('model_a')} ({one.get('a')}) against "
               f"{one.get('model_b')} ({one.get('b')}): {one.get('choice')}")


def _grid(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
