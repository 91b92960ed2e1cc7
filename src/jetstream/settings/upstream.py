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

# Fields without effect where a Jetstream is read, which has examined what it sends.
NOT_FOR_MIRRORS: Final = frozenset(
    {"verify", "verify_workers", "unresolved", "unproven", "plc_url", "plc_rate", "follow_plc"}
)


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """Part of `Settings`."""

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
    upstream_file: Annotated[
        Path | None,
        setting(
            "UPSTREAM_FILE",
            "File of more PDSes to read, one a line. SIGHUP reads it again.",
            metavar="FILE",
        ),
    ] = None
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
    verify: Annotated[
        Mode,
        setting(
            "VERIFY",
            "off: check nothing. cid: that records match their CID. signature: also what the owner signed."
            " full: also that nothing was left out.",
        ),
    ] = "cid"
    verify_workers: Annotated[
        int,
        setting(
            "VERIFY_WORKERS",
            "Processes that verify; 0: the server itself does.",
            parse_workers,
            metavar="NUMBER",
        ),
    ] = 0
    unresolved: Annotated[
        Literal["pass", "drop"],
        setting("UNRESOLVED", "What becomes of a commit whose key is not known after 10 s."),
    ] = "pass"
    unproven: Annotated[
        Literal["pass", "drop"],
        setting("UNPROVEN", "What becomes of a signed commit that does not prove its operations."),
    ] = "pass"
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
    follow_plc: Annotated[
        bool,
        setting(
            "FOLLOW_PLC", "Keep all signing keys up to date by the directory's export.", show_default=False
        ),
    ] = False

    @property
    def mirrored(self) -> Upstream | None:
        """The Jetstream whose events are taken; None: relays and PDSes are read."""
        given = () if isinstance(self.upstream, str) else self.upstream
        return next((each for each in given if each.kind == "jetstream"), None)
