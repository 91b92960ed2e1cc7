"""The types of what both wires have alike: the bodies of identity and account events."""

from typing import NotRequired, TypedDict


class IdentityBody(TypedDict):
    """`seq` is a number of the upstream, `time` a time in RFC 3339."""

    did: str
    handle: NotRequired[str]
    seq: int
    time: str


class AccountBody(TypedDict):
    """`status` says why an account is not active: takendown, suspended, deleted, deactivated, and others."""

    active: bool
    did: str
    seq: int
    status: NotRequired[str]
    time: str
