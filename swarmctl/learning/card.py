"""What a dataset says of itself: numbers in card.json, and a page with the same for people and for
`datasets`. Pure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import Message
    from swarmctl.learning.pairs import Kind, Row
    from swarmctl.learning.refine import Refined

CARD_VERSION = 1
#: A gap that a model could take for the point: one side is longer in so many of a hundred pairs, of at least
#: so many.
LONGER_PERCENT, GAP_PAIRS = 70, 20
#: Fewer rows than this teach little, and fewer held-out ones measure little.
FEW_ROWS, FEW_HELD_OUT = 100, 20

FEATURES: Mapping[str, str] = {"prompt": "turns", "chosen": "turns", "rejected": "turns",
                               "completion": "turns",
                               "label": "bool", "tools": "string", "group": "string", "reference": "string"}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "dpo": ("prompt", "chosen", "rejected"), "kto": ("prompt", "completion", "label"),
    "sft": ("prompt", "completion")}
HELD_OUT_COLUMNS = ("group", "reference")


@dataclass(frozen=True, slots=True)
class Content:
    """Everything of a dataset but its name and date: rows as they are written, and what is said of them."""

    kind: Kind
    train: tuple[dict[str, Any], ...]
    heldout: tuple[dict[str, Any], ...]
    columns: tuple[str, ...]
    sha256: str


def content(kind: Kind, train: Sequence[Row], heldout: Sequence[Row]) -> Content:
    """Rows in TRL's columns, and the hash of all of them. The order of the rows is the order of the hash."""
    tools = ("tools",) if any(row.tools for row in (*train, *heldout)) else ()
    columns = (*COLUMNS[kind], *tools)
    learned = tuple(_columns(row, columns) for row in train)
    liked = _references(heldout)
    measured = tuple({**_columns(row, columns), "group": row.group, "reference": liked.get(row.prompt)}
                     for row in heldout)
    digest = sha256()
    for split, rows in (("train", learned), ("test", measured)):
        for row in rows:
            digest.update(f"{split} {json.dumps(row, sort_keys=True)}\n".encode())
    return Content(kind, learned, measured, columns, digest.hexdigest())


def card_of(kind: Kind, refined: Refined, dropped: Counter[str], created: str) -> dict[str, Any]:
    """card.json but for its name, hash and files; `created` is ISO 8601 in UTC."""
    train, heldout = refined.train, refined.heldout
    return {
        "version": CARD_VERSION, "kind": kind, "created": created,
        "rows": {"train": len(train), "heldout": len(heldout)}, "sources": sources([*train, *heldout]),
        "dropped": {reason: count for reason, count in (dropped + refined.dropped).most_common() if count},
        "flags": dict(refined.flagged.most_common()), "length_gap": length_gap([*train, *heldout]),
        "warnings": list(warnings(train, heldout)), "raters": [], "model": None, "until": ""}


def digest_of(split_rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The same hash, of rows that were read back: split (train, test) → rows."""
    digest = sha256()
    for split in ("train", "test"):
        for row in split_rows[split]:
            digest.update(f"{split} {json.dumps(row, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def length_gap(rows: Sequence[Row]) -> dict[str, float] | None:
    """Mean characters of chosen and rejected answers, and the share of pairs whose chosen one is longer."""
    pairs = [(len(row.completion), len(row.rejected)) for row in rows if row.rejected is not None]
    if not pairs:
        return None
    chosen, rejected = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    longer = sum(one > other for one, other in pairs) / len(pairs)
    return {"chosen_mean": round(chosen, 1), "rejected_mean": round(rejected, 1),
            "chosen_longer": round(longer, 3), "pairs": len(pairs)}


def warnings(train: Sequence[Row], heldout: Sequence[Row]) -> tuple[str, ...]:
    """What a person should know before training on this."""
    return tuple(line for line in (_length_warning([*train, *heldout]), *_size_warnings(train, heldout))
                 if line)


def page(card: Mapping[str, Any], columns: Sequence[str]) -> str:
    """README.md: front matter that `datasets.load_dataset(folder)` reads, and the card for people."""
    rows, kind = card["rows"], card["kind"]
    parts = [_front_matter(columns), f"# {card['name']}\n",
             f"A {kind.upper()} dataset made by swarmctl on {card['created']}: {rows['train']:,} rows to "
             f"train on, {rows['heldout']:,} held out for ever (split `test`).\n",
             f"- content: sha256 `{card['sha256']}`\n- answers by: {card['model'] or 'any model'}\n"
             f"- newest rating or choice: {card['until'] or 'none'}\n"]
    for title, field in (("Where the rows come from", "sources"), ("Left out", "dropped"),
                         ("Flagged", "flags"), ("Licences", "licences")):
        if card.get(field):
            parts.append(_table(title, card[field]))
    if card.get("length_gap"):
        gap = card["length_gap"]
        parts.append(
            f"## Length\n\nThe chosen answer has {gap['chosen_mean']:,} characters on average, the rejected "
            f"one {gap['rejected_mean']:,}; it is longer in {gap['chosen_longer']:.0%} of pairs.\n")
    for title, field in (("Mind", "warnings"), ("Raters", "raters")):
        if card.get(field):
            parts.append(f"## {title}\n\n" + "".join(f"- {line}\n" for line in card[field]))
    return "\n".join(parts)


def sources(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows came from what."""
    return dict(Counter(row.source for row in rows).most_common())


def _columns(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    answer = [{"role": "assistant", "content": row.completion}]
    found: dict[str, Any] = {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in row.prompt],
        "chosen": answer, "completion": answer, "label": row.label, "tools": row.tools or None,
        "rejected": [{"role": "assistant", "content": row.rejected or ""}]}
    return {name: found[name] for name in columns}


def _references(rows: Sequence[Row]) -> dict[tuple[Message, ...], str]:
    """Of each prompt the answer to measure against: a correction, else an accepted answer."""
    found: dict[tuple[Message, ...], str] = {}
    for row in sorted(rows, key=lambda each: (each.corrected, each.at)):
        if row.label is not False:
            found[row.prompt] = row.completion
    return found


def _length_warning(rows: Sequence[Row]) -> str:
    gap = length_gap(rows)
    if gap is None or gap["pairs"] < GAP_PAIRS:
        return ""
    for share, way in ((gap["chosen_longer"], "longer"), (1 - gap["chosen_longer"], "shorter")):
        if share * 100 >= LONGER_PERCENT:
            return (f"the chosen answer is {way} in {share:.0%} of pairs: the model may learn to be {way} "
                    "rather than better")
    return ""


def _size_warnings(train: Sequence[Row], heldout: Sequence[Row]) -> tuple[str, ...]:
    found = []
    if len(train) < FEW_ROWS:
        found.append(f"{len(train)} rows are few to train on; {FEW_ROWS} are a start")
    if len(heldout) < FEW_HELD_OUT:
        found.append(f"{len(heldout)} rows are held out: too few to tell two models apart")
    return tuple(found)


def _table(title: str, counts: Mapping[str, int]) -> str:
    lines = "".join(f"| {name} | {number:,} |\n" for name, number in counts.items())
    return f"## {title}\n\n| | rows |\n|---|---:|\n{lines}"


def _front_matter(columns: Sequence[str]) -> str:
    features = "".join(_feature(name) for name in (*columns, *HELD_OUT_COLUMNS))
    return ("---\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: train\n    path: train.parquet\n"
            "  - split: test\n    path: heldout.parquet\ndataset_info:\n  config_name: default\n"
            f"  features:\n{features}---\n")


def _feature(name: str) -> str:
    if FEATURES[name] != "turns":
        return f"  - name: {name}\n    dtype: {FEATURES[name]}\n"
    return (f"  - name: {name}\n    list:\n    - name: role\n      dtype: string\n"
            "    - name: content\n      dtype: string\n")
