"""The types of events of the v1 wire.

    event = message.v1
    if event["kind"] == "commit":
        commit = event["commit"]
        if commit["operation"] == "create" and commit["collection"] == "app.bsky.feed.post":
            print(commit["record"]["text"])

A type checker knows the type of `commit` and of the post.
"""

from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

from jetstream.client import records
from jetstream.client.notices import AccountBody, IdentityBody

Collection = TypeVar("Collection")
Record = TypeVar("Record")


class Put(TypedDict, Generic[Collection, Record]):
    """A record was created or updated."""

    rev: str
    operation: Literal["create", "update"]
    collection: Collection
    rkey: str
    record: Record
    cid: str


class Delete(TypedDict):
    """A record was deleted. What was in it is not known."""

    rev: str
    operation: Literal["delete"]
    collection: str
    rkey: str


# The last one is of every other collection.
Commit: TypeAlias = (
    Put[Literal["app.bsky.feed.post"], records.Post]
    | Put[Literal["app.bsky.feed.like"], records.Like]
    | Put[Literal["app.bsky.feed.repost"], records.Repost]
    | Put[Literal["app.bsky.feed.threadgate"], records.Threadgate]
    | Put[Literal["app.bsky.feed.postgate"], records.Postgate]
    | Put[Literal["app.bsky.feed.generator"], records.Generator]
    | Put[Literal["app.bsky.graph.follow"], records.Follow]
    | Put[Literal["app.bsky.graph.block"], records.Block]
    | Put[Literal["app.bsky.graph.list"], records.List]
    | Put[Literal["app.bsky.graph.listitem"], records.ListItem]
    | Put[Literal["app.bsky.graph.listblock"], records.ListBlock]
    | Put[Literal["app.bsky.graph.starterpack"], records.StarterPack]
    | Put[Literal["app.bsky.graph.verification"], records.Verification]
    | Put[Literal["app.bsky.actor.profile"], records.Profile]
    | Put[Literal["app.bsky.actor.status"], records.Status]
    | Put[Literal["chat.bsky.actor.declaration"], records.ChatDeclaration]
    | Put[str, dict[str, Any]]
    | Delete
)


class CommitEvent(TypedDict):
    """One change of a repository."""

    did: str
    time_us: int
    kind: Literal["commit"]
    commit: Commit


class IdentityEvent(TypedDict):
    """An account has, or may have, another handle, key or PDS."""

    did: str
    time_us: int
    kind: Literal["identity"]
    identity: IdentityBody


class AccountEvent(TypedDict):
    """An account has another status."""

    did: str
    time_us: int
    kind: Literal["account"]
    account: AccountBody


class Heartbeat(TypedDict):
    """No event for some time. `subscribe` takes it, and does not yield it."""

    time_us: int
    kind: Literal["heartbeat"]
    live: bool


Event: TypeAlias = CommitEvent | IdentityEvent | AccountEvent
