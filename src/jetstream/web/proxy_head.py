"""The PROXY protocol: what a proxy says of a connection before the first byte of it. Pure.

https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt

    version 1   PROXY TCP4 203.0.113.9 192.0.2.1 56324 443 CR LF       at most 107 bytes
    version 2   0    CR LF CR LF 00 CR LF QUIT LF
                12   version (2) and command: 0 LOCAL, 1 PROXY
                13   family (0 unspecified, 1 IPv4, 2 IPv6, 3 Unix) and transport (1 stream, 2 datagram)
                14   length of all that follows, big-endian
                16   address of the client, that of the server, their ports, and extensions, which are ignored

A head says nothing of a client if the proxy has connected by itself (LOCAL, for a health check), or does not
know it (UNKNOWN, unspecified), or if it is no TCP connection.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

# Of a version 1 line with its CR LF: the longest that the specification allows (section 2.1).
V1_BYTES_MAX: Final = 107
V2_BYTES_MAX: Final = 2_048  # ours; those of load balancers have some hundred
_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED: Final = 16
# Version 2: the commands, and the highest numbers of families and transports.
_LOCAL, _PROXY = 0, 1
# Family and transport, and how many bytes an address has. Others than these two say nothing of a client.
_TCP: Final = {0x11: 4, 0x21: 16}
_FAMILIES, _TRANSPORTS = 3, 2
_LINE: Final = re.compile(
    r"PROXY (?:UNKNOWN(?: .*)?|(TCP[46])"
    r" ([0-9a-fA-F.:]{2,45}) ([0-9a-fA-F.:]{2,45}) ([0-9]{1,5}) ([0-9]{1,5}))",
    re.ASCII,
).fullmatch


class BadHead(Exception):
    """What came is no head of the PROXY protocol.

    The text says why, without what came: it is shown in the log.
    """


class ProxyHead:
    """Takes the head of a connection, and nothing behind it, in pieces of any size.

    `arrival` peeks at the socket, and takes as many bytes from it as `take` says, until `complete`.
    """

    def __init__(self) -> None:
        # All bytes of the head that were taken so far, at most `V2_BYTES_MAX`.
        self._taken = b""
        # Whether it is complete.
        self.complete = False
        # The address of the client, once it is complete; None: that of the peer.
        self.address: str | None = None

    def take(self, data: bytes) -> int:
        """Return how many bytes at the start of `data` belong to the head. Raises BadHead.

        They must not be given again. Each call takes at least one byte of any data.

        It may be fewer than `data` has: what follows is of the client. The head is parsed in the call that
        completes it.
        """
        seen = self._taken + data
        size = _size(seen)
        self.complete = size is not None and len(seen) >= size
        head = seen[:size]
        if self.complete:
            self.address = _v1(head) if head.startswith(_V1) else _v2(head)
        taken, self._taken = len(head) - len(self._taken), head
        return taken


def _size(seen: bytes) -> int | None:
    """Return the size of a head that begins so; None if it is not known and all belongs to it.

    Raises BadHead as soon as the bytes cannot begin a head, so that a client that is no proxy is not
    waited for.
    """
    if seen[: len(_V2)] == _V2[: len(seen)]:
        return _v2_size(seen)
    if seen[: len(_V1)] != _V1[: len(seen)]:
        raise BadHead("the connection does not begin with a head of the PROXY protocol")
    end = seen.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0 and len(seen) >= V1_BYTES_MAX:
        raise BadHead(f"the PROXY line has more than {V1_BYTES_MAX} bytes")
    return None if end < 0 else end + 2


def _v2_size(seen: bytes) -> int | None:
    """Return the size of a version 2 head; None before its first 16 bytes. Raises BadHead."""
    if len(seen) < _V2_FIXED:
        return None
    size = _V2_FIXED + int.from_bytes(seen[14:16], "big")
    if size > V2_BYTES_MAX:
        raise BadHead(f"the PROXY head has {size} bytes, and may have {V2_BYTES_MAX}")
    return size


def _v1(head: bytes) -> str | None:
    """Return the client's address of a version 1 line; None for UNKNOWN. Raises BadHead.

    Both addresses must be of the family that the line names, and the ports in range, as the specification
    demands (section 2.1). Only the first address is used.
    """
    found = _LINE(head[:-2].decode("latin-1"))
    if found is None:
        raise BadHead("the PROXY line is not as in version 1 of the protocol")
    family, *addresses, port, other_port = found.groups()
    if family is None:
        return None
    try:
        client, server = map(ip_address, addresses)
    except ValueError:
        raise BadHead("the PROXY line has an address that is none") from None
    if {client.version, server.version} != {int(family[3:])} or max(int(port), int(other_port)) > 65535:
        raise BadHead("the PROXY line has an address or a port of another kind than it says")
    return str(client)


def _v2(head: bytes) -> str | None:
    """Return the client's address of a version 2 head; None where it names none. Raises BadHead.

    Section 2.2. Families and transports other than TCP over IP are valid, and name no client here.
    Extensions (TLVs) behind the addresses are ignored, and so is their checksum.
    """
    version, command = divmod(head[12], 16)
    family, transport = divmod(head[13], 16)
    if version != 2 or command not in (_LOCAL, _PROXY) or family > _FAMILIES or transport > _TRANSPORTS:
        raise BadHead("the PROXY head has a version, a command or a family that is unknown")
    size = _TCP.get(head[13])
    if command == _LOCAL or size is None:
        return None
    if len(head) < _V2_FIXED + 2 * size + 4:
        raise BadHead("the PROXY head is too short for its addresses")
    packed = head[_V2_FIXED : _V2_FIXED + size]
    return str(IPv4Address(packed) if size == 4 else IPv6Address(packed))
