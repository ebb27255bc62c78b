"""torchrun for several hosts, which meet at one address of the first. torchrun's own static rendezvous opens
its store on every network of that host, and whoever reaches the store may read and write it.

Run as `python -m swarmctl.jobs.meet` with torchrun's arguments, `--rdzv-backend=swarmctl` and the host's rank
in `--rdzv-conf`. Torch's store has a parameter for a socket that listens already; torchrun has none for it.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

BACKEND = "swarmctl"


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens at the address where others reach this host; on all of its networks where that
    address is none of its own (behind NAT), or is a name, which many a host calls loopback at home. Raises
    OSError."""
    with suppress(ValueError, OSError):
        version = ipaddress.ip_address(address).version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        return socket.create_server((address, port), family=family)
    return socket.create_server(("", port))


def main() -> None:
    """torchrun, with a rendezvous of our own to choose."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.run import main as torchrun

    rendezvous_handler_registry.register(BACKEND, _rendezvous)
    torchrun()


def _rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    """torch's static rendezvous, whose store on the first host listens where we say."""
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import create_rdzv_handler

    parameters.config["rank"] = int(parameters.config["rank"])
    handler: Any = create_rdzv_handler(parameters)
    handler.get_backend = lambda: BACKEND
    if handler.rank == 0:
        handler._store = _store(handler)
    return handler


def _store(handler: Any) -> TCPStore:  # noqa: ANN401  torch has no types here
    from torch.distributed import TCPStore

    sock = listen(handler.master_addr, handler.master_port)
    return TCPStore(handler.master_addr, handler.master_port, handler.world_size, is_master=True,
                    timeout=handler.timeout, multi_tenant=True, master_listen_fd=sock.detach())


if __name__ == "__main__":
    main()
