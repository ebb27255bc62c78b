"""What was live where, when, on what evidence and by whom; and what that makes of the inventory's wishes.

`releases.jsonl` lies beside the journal and is as append-only. Everything follows from its records: the
champion that serves a model (none: the inventory's own source), the canary beside it, and what a rollback
returns to. Promoting and rolling back write one record and move no weights.

The champion and the canary of a model have two places on a host, 0 and 1, that they take in turn: a promoted
canary keeps its server and its port, and the next canary gets the place of the one before.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from swarmctl.fleet.served import expected_quality
from swarmctl.inventory import AdapterWish, LlamaCppWish, placement_ports, runtime_of
from swarmctl.ledger import journal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from swarmctl.inventory import Host, Inventory, ModelWish, Placement
    from swarmctl.paths import Paths

Action = Literal["deploy", "share", "promote", "rollback", "retire", "refuse"]
NAME = re.compile(r"v(?P<number>[0-9]+)-(?P<digest>[0-9a-f]{8})")
WEIGHTS = "model.gguf"
ADAPTER = "adapter.gguf"


@dataclass(frozen=True, slots=True)
class Release:
    """One record: what was done with a release of a model. `size` is bytes of its GGUF, whose hash is
    `sha256`; `hosts` are those of its canary, all where empty. A refused one has no name.

    An `adapter` (sha256, and `size` in bytes) goes over the GGUF with the sha256 `base`, that of the release
    `over`, or the inventory's own where that is empty; `sha256` tells the two together from all others.
    """

    id: str
    at: str
    action: Action
    model: str
    release: str
    sha256: str = ""
    size: int = 0
    share: float = 0.0
    hosts: tuple[str, ...] = ()
    run: str = ""
    dataset: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    by: str = ""
    adapter: str = ""
    base: str = ""
    over: str = ""

    def to_record(self) -> dict[str, Any]:
        """The line of releases.jsonl."""
        from swarmctl.exchange import RECORD_VERSION

        return {"v": RECORD_VERSION, "kind": "release", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands: the releases that serve it, each as it was deployed. `champion` None is the
    inventory's own source. `past` are the champions before this one, the latest last (None as above);
    `place` is the champion's, 0 or 1."""

    model: str
    champion: Release | None = None
    canary: Release | None = None
    share: float = 0.0
    past: tuple[Release | None, ...] = ()
    place: int = 0
    history: tuple[Release, ...] = ()

    @property
    def previous(self) -> Release | None:
        """The release that a rollback of the champion returns to; None is the inventory's own source."""
        return self.past[-1] if self.past else None

    def known(self, name: str) -> Release | None:
        """The release of that name, as it was deployed last."""
        return next((one for one in reversed(self.history)
                     if one.action == "deploy" and one.release == name), None)

    def of(self, sha256: str) -> Release | None:
        """The release made of those weights."""
        return next((one for one in reversed(self.history)
                     if one.action == "deploy" and one.sha256 == sha256), None)


def read(paths: Paths) -> tuple[Release, ...]:
    """Every record, in the order of writing; what is torn is passed over."""
    found = journal.scan(paths.journal / f"{journal.RELEASES}.jsonl")
    return tuple(one for line in found if line.record is not None and (one := _release(line.record)))


def append(paths: Paths, now: float, **fields: Any) -> Release:  # noqa: ANN401  the fields of a Release
    """Record what is done now (seconds since 1970), before it is done. Raises LedgerError."""
    from swarmctl.exchange import new_id

    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    made = Release(id=new_id(int(now * 1000), secrets.randbits(30)), at=at, **fields)
    journal.append(paths.journal, made.to_record(), journal.RELEASES)
    return made


def standing(records: Iterable[Release], model: str) -> Standing:
    """How a model stands after these records."""
    found = Standing(model)
    for one in records:
        if one.model == model:
            found = replace(_after(found, one), history=(*found.history, one))
    return found


def next_name(records: Iterable[Release], model: str, sha256: str) -> str:
    """The name of a release of those weights: the one it has, else the model's next number."""
    numbers = [0]
    for one in records:
        parts = NAME.fullmatch(one.release)
        if one.model != model or parts is None:
            continue
        if one.action == "deploy" and one.sha256 == sha256:
            return one.release
        numbers.append(int(parts["number"]))
    return f"v{1 + max(numbers)}-{sha256[:8]}"


def wish_name(model: str, release: str) -> str:
    """A release's name among the wishes, and that of its server."""
    return f"{model}:{release}"


def wanted(inventory: Inventory, records: Sequence[Release], paths: Paths, *,
           previous: bool = False) -> Inventory:
    """The inventory with every model served by its champion, and its canary beside it. With `previous`,
    what a rollback would return to is wanted too: that is what hosts are to keep.

    Pure. Raises KeyError for nothing: records of models that the inventory no longer has are passed over.
    """
    models = dict(inventory.models)
    told: dict[str, tuple[_Live, ...]] = {}
    for name, wish in inventory.models.items():
        found = standing(records, name)
        told[name] = tuple(_live(found, previous=previous))
        for one in told[name]:
            if one.release is not None:
                made = _wish(wish, one, paths)
                models[made.name] = made
    second = _second_ports(inventory)
    return replace(inventory, models=models, hosts=tuple(
        replace(host, models=_placements(host, told, second[host.name])) for host in inventory.hosts))


@dataclass(frozen=True, slots=True)
class _Live:
    """A release that is to be on hosts: which (None: the inventory's source), on which place, beside what."""

    model: str
    release: Release | None
    place: int
    role: Literal["champion", "canary", "previous"]
    share: float = 1.0

    def on(self, host: str) -> bool:
        named = self.release.hosts if self.release and self.role == "canary" else ()
        return not named or host in named


def _live(found: Standing, *, previous: bool) -> Iterator[_Live]:
    yield _Live(found.model, found.champion, found.place, "champion")
    if found.canary:
        yield _Live(found.model, found.canary, 1 - found.place, "canary", found.share)
    if previous and found.past:
        yield _Live(found.model, found.previous, 1 - found.place, "previous", 0.0)


def _wish(wish: ModelWish, one: _Live, paths: Paths) -> ModelWish:
    assert one.release is not None
    found, name = one.release, one.release.release
    folder = paths.releases / wish.name / name
    adapter = AdapterWish(str(folder / ADAPTER), found.adapter, found.over) if found.adapter else None
    return replace(wish, name=wish_name(wish.name, name), sha256=found.base or found.sha256, of=wish.name,
                   source=str(folder / WEIGHTS), release=name, share=one.share, adapter=adapter,
                   canary=one.role != "champion", quality=expected_quality(wish))


def _placements(host: Host, told: Mapping[str, tuple[_Live, ...]],
                second: Mapping[int, int]) -> tuple[Placement, ...]:
    """The host's placements, each by its champion where it was, canaries after them all."""
    first, beside = [], []
    for index, (placement, port) in enumerate(zip(host.models, placement_ports(host), strict=True)):
        for one in told.get(placement.model, ()):
            if one.release is None and one.role == "champion":
                first.append(placement)
                continue
            name = wish_name(one.model, one.release.release) if one.release else one.model
            found = replace(placement, model=name)
            if runtime_of(host, placement) != "ollama":
                found = replace(found, port=(port, second[index])[one.place])
            if one.role == "champion":
                first.append(found)
            elif one.on(host.name):
                beside.append(found)
    return (*first, *beside)


def _second_ports(inventory: Inventory) -> dict[str, dict[int, int]]:
    """The other port of every llama.cpp placement: after all first ones of its host, and none that another
    host of that machine has."""
    found: dict[str, dict[int, int]] = {host.name: {} for host in inventory.hosts}
    taken = {(host.ssh, port) for host in inventory.hosts for port in placement_ports(host)}
    for host in inventory.hosts:
        first = (host.llamacpp or LlamaCppWish()).port + len(host.models)
        for index, placement in enumerate(host.models):
            if runtime_of(host, placement) == "ollama":
                continue
            port = next(port for port in count(first + index) if (host.ssh, port) not in taken)
            taken.add((host.ssh, port))
            found[host.name][index] = port
    return found


def _after(found: Standing, one: Release) -> Standing:
    """The standing after one more record."""
    match one.action:
        case "deploy" if not (found.champion and found.champion.release == one.release):
            return replace(found, canary=one, share=one.share)
        case "share" if found.canary and found.canary.release == one.release:
            return replace(found, share=one.share)
        case "promote" if risen := _risen(found, one.release):
            return replace(found, champion=risen, canary=None, share=0.0, place=1 - found.place,
                           past=(*found.past, found.champion))
        case "rollback" | "retire" if found.canary and found.canary.release == one.release:
            return replace(found, canary=None, share=0.0)
        case "rollback" if found.champion and found.champion.release == one.release and found.past:
            return replace(found, champion=found.past[-1], past=found.past[:-1], canary=None, share=0.0,
                           place=1 - found.place)
        case _:
            return found


def _risen(found: Standing, name: str) -> Release | None:
    """The release that a promotion of that name makes champion; None where it is that already."""
    if found.champion and found.champion.release == name:
        return None
    return found.canary if found.canary and found.canary.release == name else found.known(name)


def _release(record: Mapping[str, Any]) -> Release | None:
    """A record of ours; fields that a newer version added are left out."""
    known = {key: value for key, value in record.items() if key in Release.__slots__}
    try:
        made = Release(**{**known, "hosts": tuple(known.get("hosts") or ())})
    except TypeError:
        return None
    return made if record.get("kind") == "release" else None
