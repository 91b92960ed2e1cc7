"""The trusted proxies, and the limits for each client address. Pure.

A connection is one of three: of a client, whose visit begins with it; of a trusted proxy, which has no
visit of its own; of an address without limits, such as an exempt one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jetstream.settings import Network
from jetstream.web.address_limits import Addresses, Visit
from jetstream.web.proxies import is_trusted


class Peers(NamedTuple):
    """The proxies that are trusted, and the addresses of all clients; None: there are no limits for them.

    `proxy_protocol`: a connection of a trusted proxy begins with a head of the PROXY protocol.
    """

    # Networks of `--trusted-proxies`. Empty: no peer is believed what it says of others.
    trusted: Sequence[Network] = ()
    addresses: Addresses | None = None
    proxy_protocol: bool = False

    def arrive(self, peer: str) -> Visit | None:
        """Begin the visit of a connection. None for one without limits.

        A proxy has none: the visits of its clients begin with their requests.

        `peer` is the address that the connection came from. A visit may have been refused
        (`Visit.refusal`): the caller answers with that, and must end it all the same.
        """
        return None if self.addresses is None or is_trusted(peer, self.trusted) else self.visit(peer)

    def visit(self, address: str) -> Visit | None:
        """Begin the visit of a client by its address. None for one without limits.

        Used for a client behind a proxy when it subscribes. Its other requests are not limited.
        """
        return None if self.addresses is None else self.addresses.visit(address)
