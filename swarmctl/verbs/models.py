"""`swarmctl models`: what the hosts hold, whether what is wanted fits, and removing what nobody wants.

Looking loads nothing and downloads nothing. Only what carries swarmctl's own names is ever pruned: blobs
under data_dir, and Ollama models called after the hash of their weights. What an owner put there stays.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.habits import last_used
from swarmctl.errors import SwarmError
from swarmctl.fleet.blobs import blob_path
from swarmctl.fleet.holdings import holdings
from swarmctl.fleet.locks import HostLock
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.remote import connect
from swarmctl.fleet.survey import survey
from swarmctl.fleet.yard import LOOK_LIMIT
from swarmctl.runtimes import ollama_models
from swarmctl.runtimes.placement import place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.fleet.holdings import Holding, Stock
    from swarmctl.fleet.yard import Yard
    from swarmctl.inventory import Host
    from swarmctl.runtimes.placement import Share

REMOVE_LIMIT = 120.0
DROP = 'rm -f -- "$1"'


@dataclass(frozen=True, slots=True)
class Row:
    """A model on a host. `used` is when it last answered, in seconds since 1970, where that is known."""

    holding: Holding
    used: float | None

    def to_record(self) -> dict[str, Any]:
        """The row for --json."""
        return {**asdict(self.holding), "last_used": self.used}


def listing(yard: Yard, only: Sequence[str] = ()) -> Iterator[tuple[Host, tuple[Row, ...] | SwarmError]]:
    """What each host holds, as it answers."""
    known, fleet = yard.known(), yard.fleet()
    servers = {(entry.name, served.runtime, served.tag or served.digest): served.server
               for entry in (fleet.hosts if fleet else ()) for served in entry.served}
    for host, stock in yard.stocks(yard.chosen(only)):
        if isinstance(stock, SwarmError):
            yield host, stock
            continue
        rows = []
        for one in holdings(stock, yard.kept or yard.inventory, known):
            server = servers.get((host.name, one.runtime, one.tag or one.digest))
            rows.append(Row(one, last_used(yard.paths, host.name, server) if server else None))
        yield host, tuple(rows)


def fits(yard: Yard, only: Sequence[str] = ()) -> Iterator[tuple[Host, tuple[Share, ...] | SwarmError]]:
    """Whether what is wanted of each host fits it, with the arithmetic. Raises SwarmError where a wanted
    model's file cannot be read."""
    known, hosts = yard.known(), yard.chosen(only)
    wanted = {placement.model for host in hosts for placement in host.models}
    unread = [name for name in wanted if name not in known.files and not yard.inventory.models[name].pulled]
    if unread:
        raise SwarmError(f"nothing is known yet of {', '.join(sorted(unread))}"
                         + "".join(f"; {problem}" for problem in known.problems),
                         hint="`swarmctl up --dry-run` fetches it")

    def look(host: Host) -> tuple[Share, ...]:
        return place(yard.want(host), survey(connect(host, yard.paths, yard.inventory.ssh_config), host))

    yield from over_hosts(hosts, look, timeout=LOOK_LIMIT)


def waste(yard: Yard,
          only: Sequence[str] = ()) -> Iterator[tuple[Host, tuple[Stock, tuple[Holding, ...]] | SwarmError]]:
    """What each host holds of ours that no server uses, nobody has loaded and the inventory does not want.

    Raises SwarmError where it is not certain what the inventory wants.
    """
    known = yard.known()
    if known.problems:
        raise SwarmError("; ".join(known.problems),
                         hint="until that is mended nothing can be called unwanted")
    kept = yard.kept or yard.inventory
    for host, stock in yard.stocks(yard.chosen(only)):
        if isinstance(stock, SwarmError):
            yield host, stock
        else:
            there = holdings(replace(stock, host=kept.host(host.name)), kept, known)
            yield host, (stock, tuple(one for one in there
                                      if one.ours and not one.wanted and not one.loaded and not one.used_by))


def refused(one: Holding) -> str | None:
    """Why a model is not to be removed; None where it may go."""
    if one.used_by:
        return f"server {', '.join(one.used_by)} uses it"
    return "the inventory wants it there, and the next `up` would bring it back" if one.wanted else None


def remove(yard: Yard, stock: Stock, what: Sequence[Holding]) -> int:
    """Remove models from a host, under its lock; bytes that were given up. Raises RemoteErrors and
    ServerErrors."""
    lock = HostLock(stock.remote, stock.seen.data_dir, yard.paths.state)
    lock.renew(REMOVE_LIMIT)
    try:
        for one in what:
            _remove(stock, one)
    finally:
        lock.release()
    return sum(one.size for one in what)


def _remove(stock: Stock, one: Holding) -> None:
    if one.runtime == "ollama":
        endpoint = next(ollama.endpoint for ollama in stock.ollamas if ollama.port == one.port)
        try:
            ollama_models.delete(endpoint, one.tag)
        except SwarmError as exc:
            raise type(exc)(f"{one.tag}: {exc.message}", host=one.host, hint=exc.hint) from exc
        return
    path = blob_path(stock.seen.data_dir, one.digest)
    stock.remote.run(("sh", "-c", DROP, "sh", path), timeout=REMOVE_LIMIT)
