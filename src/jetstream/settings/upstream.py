"""The settings of what is read: upstreams, and what is checked of their messages.

Annotations are values here: cyclopts would look up names in the module of `Settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from jetstream.settings.declaring import setting, several
from jetstream.settings.values import PLC_URL, parse_plc_urls, parse_rate, parse_workers
from jetstream.upstreams import FIREHOSE_PATH, Upstream, parse_seqs, parse_upstreams
from jetstream.verify_modes import Mode

# Fields without effect where a Jetstream is read. It has examined what it sends, and its events have no
# proofs any more: nothing could be verified.
NOT_FOR_MIRRORS: Final = frozenset(
    {"verify", "verify_workers", "unresolved", "unproven", "plc_url", "plc_rate", "follow_plc"}
)


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """Part of `Settings`."""

    # Text only by default, which is parsed where it is used; as given it is parsed at once. Several are
    # in the order of preference (docs/settings.md, Several upstreams).
    upstream: Annotated[
        str | tuple[Upstream, ...],
        several(
            "WS_URL",
            "Relay or PDS to read: a URL or a host, or name=URL. Repeat it for several. jetstream+wss://HOST"
            " is another Jetstream, to mirror.",
            parse_upstreams,
            alias=["--ws-url", "--relay-url"],
            metavar="URL",
        ),
    ] = f"wss://bsky.network{FIREHOSE_PATH}"
    # None: there are no others. It may name thousands of PDSes, and change while the server runs.
    upstream_file: Annotated[
        Path | None,
        setting(
            "UPSTREAM_FILE",
            "File of more PDSes to read, one a line. SIGHUP reads it again.",
            metavar="FILE",
        ),
    ] = None
    # For one upstream its seq, for several pairs of name and seq. None: after the cursor in the log, or
    # live. It holds for the start only: a reconnection resumes after what was read.
    upstream_cursor: Annotated[
        int | tuple[tuple[str, int], ...] | None,
        several(
            "OVERRIDE_RELAY_CURSOR",
            "Upstream seq to start after, instead of the one in the log; -1: none. With several upstreams:"
            " name=seq.",
            parse_seqs,
            alias=["--override-relay-cursor"],
            metavar="SEQ",
        ),
    ] = None
    # Each includes the one before it. From `signature` on, signing keys are needed, and `admission` is
    # loaded.
    verify: Annotated[
        Mode,
        setting(
            "VERIFY",
            "off: check nothing. cid: that records match their CID. signature: also what the owner signed."
            " full: also that nothing was left out.",
        ),
    ] = "cid"
    # At most 64. They pay off with signatures, where one core is not enough for all messages.
    verify_workers: Annotated[
        int,
        setting(
            "VERIFY_WORKERS",
            "Processes that verify; 0: the server itself does.",
            parse_workers,
            metavar="NUMBER",
        ),
    ] = 0
    # `drop` loses commits whenever no directory answers; `pass` lets unverified ones through meanwhile.
    unresolved: Annotated[
        Literal["pass", "drop"],
        setting("UNRESOLVED", "What becomes of a commit whose key is not known after 10 s."),
    ] = "pass"
    # With `verify` full. It holds for what old hosts send: signed, and without a proof of its
    # operations.
    unproven: Annotated[
        Literal["pass", "drop"],
        setting("UNPROVEN", "What becomes of a signed commit that does not prove its operations."),
    ] = "pass"
    # In the order in which they are asked until one answers. At most 8.
    plc_url: Annotated[
        tuple[str, ...],
        several(
            "PLC_URL",
            "PLC directory for signing keys. Repeat it for several, in order.",
            parse_plc_urls,
            show_default=", ".join,
            metavar="URL",
        ),
    ] = (PLC_URL,)
    # A second, above 0. It keeps a flood of unknown accounts from becoming a flood of requests.
    plc_rate: Annotated[
        float,
        setting(
            "PLC_RATE",
            "Requests a second to all PLC directories together.",
            parse_rate,
            "{:g}".format,
            metavar="NUMBER",
        ),
    ] = 100.0
    # Off by default: the export has tens of millions of accounts, and takes gigabytes of disk
    # (docs/keys.md).
    follow_plc: Annotated[
        bool,
        setting(
            "FOLLOW_PLC", "Keep all signing keys up to date by the directory's export.", show_default=False
        ),
    ] = False

    @property
    def mirrored(self) -> Upstream | None:
        """The Jetstream whose events are taken; None: relays and PDSes are read.

        It stands alone: `parse_upstreams` refuses others beside it.
        """
        given = () if isinstance(self.upstream, str) else self.upstream
        return next((each for each in given if each.kind == "jetstream"), None)
