"""Which upstreams are read: their names, URLs and kinds, as flags, a variable and a file give them.

An upstream is `url` or `name=url`. Its name, by default `host:port`, is the key of its cursor in the
log, and names it in metrics, conditions and log lines. A URL that begins with `jetstream+` is that of a
Jetstream, which stands alone.

    --upstream, JETSTREAM_UPSTREAM ─▶ `parse_upstreams` ─┐
    --upstream-file ─▶ `read_file`, at start and SIGHUP ─┴─▶ `all_upstreams` ─▶ Upstream, …
    --upstream-cursor ─▶ `parse_seqs` ─▶ `cursors_of` ─▶ where each begins

Functions that parse raise ValueError with the rest of a sentence, whose subject is the value.
`settings` makes it an error that names the flag. A password in a URL is in no error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from jetstream.errors import SettingError
from jetstream.limits import SourceLimits
from jetstream.urls import shown

# The path of a firehose: com.atproto.sync.subscribeRepos of the AT Protocol.
FIREHOSE_PATH: Final = "/xrpc/com.atproto.sync.subscribeRepos"
# Where a Jetstream has all kinds of events. One that is older has them, but for syncs, at the second path.
SUBSCRIBE_EVENTS_PATH: Final = "/xrpc/network.bsky.jetstream.subscribeEvents"
SUBSCRIBE_PATH: Final = "/subscribe"
# Before the URL of a Jetstream.
JETSTREAM: Final = "jetstream+"
# How far a position of a Jetstream may be ahead of our clock, in microseconds. One that is further ahead is
# an error: all that came after it would be below it.
AHEAD_MAX_US: Final = 86_400_000_000
# Names of settings, for errors.
FILE_FLAG: Final = "--upstream-file"
CURSOR_FLAG: Final = "--upstream-cursor"
# Stands for all PDSes of the file in metrics, where each of them would be a hundred series.
PDS_LABEL: Final = "pds"

# `relay`: of `--upstream`. `pds`: of `--upstream-file`. `jetstream`: of `--upstream`, a Jetstream.
UpstreamKind = Literal["relay", "pds", "jetstream"]

# What is wrong with a value: the rest of the sentence that begins with it.
_NO_UPSTREAM: Final = "is not a host or URL such as wss://bsky.network"
_NO_JETSTREAM: Final = "is not the URL of a Jetstream, such as jetstream+wss://jetstream.example"
_ALONE: Final = (
    "is a Jetstream, whose events are taken with their positions: no other upstream is allowed beside it"
)
# Names are values of a label of metrics, and keys in the log.
_NAME_CHARS_MAX: Final = 100
_NAME: Final = re.compile(rf"[A-Za-z0-9._:-]{{1,{_NAME_CHARS_MAX}}}")
# A comment in a file of upstreams: to the end of the line, after a space or at its beginning.
_COMMENT: Final = re.compile(r"(^|\s)#.*")


class Upstream(NamedTuple):
    """A relay, PDS or Jetstream that is read.

    `url` has a path, and its user and password, if there are any: `urls.shown` is for people. Upstreams
    that are equal need no new connection when the file is read again.
    """

    name: str
    url: str
    kind: UpstreamKind = "relay"


def origin(url: str) -> str:
    """Return `host:port` of a URL: the name of an upstream that was given none.

    The port is 443 for `wss` and 80 otherwise, if the URL has none. The host is in lower case.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    return f"{parts.hostname}:{port}"


def parse_url(text: str, default_path: str = FIREHOSE_PATH) -> str:
    """Parse a URL, a base URL or a bare host. Return its URL, with a path. Raises ValueError.

    `http` and `https` become `ws` and `wss`; a host alone is taken as `wss`. A path of the URL stays,
    and so do its query and its user.
    """
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"wss://{text}")
        port = parts.port
    except ValueError as error:
        raise ValueError(_NO_UPSTREAM) from error
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    is_host = bool(parts.hostname) and "=" not in (parts.hostname or "")
    if scheme not in {"ws", "wss"} or not is_host or port == 0 or re.search(r"\s", text):
        raise ValueError(_NO_UPSTREAM)
    path = default_path if parts.path in {"", "/"} else parts.path
    return parts._replace(scheme=scheme, path=path, fragment="").geturl()


def parse_upstream(text: str, kind: UpstreamKind = "relay") -> Upstream:
    """Parse `url` or `name=url`. Raises ValueError.

    A URL that begins with `jetstream+` is of kind `jetstream`, whatever `kind` says; a Jetstream cannot
    be a PDS. `pds` and `none` are no names: they have a meaning in metrics and flags.
    """
    name, url = _split_name(text)
    if url.strip().startswith(JETSTREAM):
        url, kind = _parse_jetstream(url.strip(), kind), "jetstream"
    else:
        url = parse_url(url)
    if name is None:
        return Upstream(origin(url), url, kind)
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"begins with a name that cannot be used: up to {_NAME_CHARS_MAX} letters, digits, '.', '-', '_'"
            " and ':'"
        )
    if name in {PDS_LABEL, "none"}:
        raise ValueError(f"begins with the name {name!r}, which has a meaning of its own: choose another one")
    return Upstream(name, url, kind)


def _parse_jetstream(text: str, kind: UpstreamKind) -> str:
    """Parse the URL of a Jetstream; return that to connect to. Raises ValueError.

    It must have a scheme, unlike that of a relay. Without a path it is that of the v2 endpoint.
    """
    if kind == "pds":
        raise ValueError("is a Jetstream, which stands alone: give it to --upstream")
    url = text.removeprefix(JETSTREAM)
    if "://" not in url:
        raise ValueError(_NO_JETSTREAM)
    try:
        return parse_url(url, SUBSCRIBE_EVENTS_PATH)
    except ValueError:
        raise ValueError(_NO_JETSTREAM) from None


def _split_name(text: str) -> tuple[str | None, str]:
    """Return the name and the URL of `name=url`; None is the name of what is only a URL.

    A URL may have a `=` in its query, and in a password: one without a scheme is no part of `name=url`.
    """
    name, equals, url = text.strip().partition("=")
    if not equals or re.search(r"[/?#@]", name) or ("@" in url and "://" not in url):
        return None, text
    return name.strip(), url


def parse_upstreams(texts: Sequence[str]) -> str | tuple[Upstream, ...]:
    """Parse the values of `--upstream`: a single URL to itself, else upstreams. `none` is no upstream.

    Raises ValueError, whose text has no password in it.

    `all_upstreams` takes either form.
    """
    if list(texts) == ["none"]:
        return ()
    found = tuple(map(_one_of, texts))
    _require_names(found)
    if len(found) == 1 and found[0].kind == "relay" and found[0].name == origin(found[0].url):
        return found[0].url
    return found


def _one_of(text: str) -> Upstream:
    """Parse one value of `--upstream`. Raises ValueError, which names the value without its secrets."""
    if text == "none":
        raise ValueError("'none' is for no upstream, and stands alone")
    try:
        return parse_upstream(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)!r} {error}") from None  # the cause may quote a password


def _require_names(upstreams: Iterable[Upstream]) -> None:
    """Raise ValueError if two upstreams have one name.

    That also happens without names, to two paths of one host and port.
    """
    seen = set()
    for each in upstreams:
        if each.name in seen:
            raise ValueError(f"{each.name!r} is the name of two upstreams: write name=URL for one of them")
        seen.add(each.name)


def parse_seqs(texts: Sequence[str]) -> int | tuple[tuple[str, int], ...] | None:
    """Parse the values of `--upstream-cursor`: one number, or `name=seq` for each. Raises ValueError.

    `-1` is none, as in the Go server.

    None: upstreams start where the log says. A name that is given twice is an error.
    """
    if list(texts) == ["-1"]:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return _seq(texts[0], texts[0])
    found: dict[str, int] = {}
    for text in texts:
        name, equals, seq = text.strip().rpartition("=")
        if not equals:
            raise ValueError(f"{text!r} is one of several: write name=seq for each")
        if name in found:
            raise ValueError(f"{text!r} is the second one for {name!r}")
        found[name] = _seq(seq, text)
    return tuple(found.items())


def _seq(number: str, text: str) -> int:
    """Parse a number, which is all of a value of `--upstream-cursor` or a part of it. Raises ValueError."""
    try:
        return parse_count(number)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number, or name=seq with one") from None


def parse_count(text: str) -> int:
    """Parse a whole number from 0 on, of 18 digits at most. Raises ValueError.

    18 digits fit into 63 bits, which is what the log stores.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("is not a whole number from 0 on")
    return int(text)


def all_upstreams(
    given: str | tuple[Upstream, ...], path: Path | None, limits: SourceLimits = SourceLimits()
) -> tuple[Upstream, ...]:
    """Return the upstreams of `--upstream`, then those of the file as it is now.

    `given` is what `parse_upstreams` returned. Raises SettingError.

    Raises it for a Jetstream beside others, for no upstream at all, and for a file that cannot be used.
    Reads the file in the calling thread.
    """
    relays = (parse_upstream(given),) if isinstance(given, str) else given
    for each in relays:
        if each.kind == "jetstream" and (len(relays) > 1 or path is not None):
            raise SettingError("--upstream", f"{JETSTREAM}{shown(each.url)}", _ALONE)
    if path is not None:
        return relays + read_file(path, relays, limits)
    if not relays:
        raise SettingError("--upstream", "none", f"leaves nothing to read: give an {FILE_FLAG}")
    return relays


def cursors_of(
    given: int | Iterable[tuple[str, int]] | None, upstreams: Sequence[Upstream], *, may_change: bool
) -> dict[str, int]:
    """Return the seqs of `--upstream-cursor` by the name of the upstream. Raises SettingError.

    `given` is what `parse_seqs` returned. A number without a name is for a single upstream, to which no
    other may come (`may_change`).

    Only upstreams that are named in it are in the result.
    """
    if given is None:
        return {}
    names = [each.name for each in upstreams]
    if isinstance(given, int):
        if may_change or len(names) != 1:
            problem = f"is for one of several upstreams: write name=seq, such as {[*names, 'a'][0]}={given}"
            raise SettingError(CURSOR_FLAG, str(given), problem)
        return {names[0]: given}
    cursors = dict(given)
    for name in cursors.keys() - set(names):
        raise SettingError(CURSOR_FLAG, name, f"is no upstream: names are {', '.join(names[:10])}")
    return cursors


def read_file(
    path: Path, others: Iterable[Upstream] = (), limits: SourceLimits = SourceLimits()
) -> tuple[Upstream, ...]:
    """Return the PDSes of a file, in the order of its lines; `others` are the upstreams beside them.

    Raises SettingError, which names the line, for a file that cannot be used.

    A file has one upstream a line, as `parse_upstream` reads it; empty lines and comments are skipped.
    All of it is read before anything is used: a bad line leaves everything as it was.
    """
    try:
        data = _read(path, limits.file_bytes_max + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SettingError(FILE_FLAG, str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingError(FILE_FLAG, str(path), "is not UTF-8 text") from error
    if len(data) > limits.file_bytes_max:
        raise SettingError(FILE_FLAG, str(path), f"is over {limits.file_bytes_max} bytes")
    try:
        return _parse_lines(text, {each.name: "an --upstream" for each in others}, limits.pds_max)
    except ValueError as error:
        raise SettingError(FILE_FLAG, str(path), str(error)) from None  # the cause may quote a password


def _read(path: Path, bytes_max: int) -> bytes:
    """Return up to `bytes_max` bytes of a file. Raises OSError, SettingError.

    A pipe is refused: it says everything once, and a server would wait for it, deaf to signals.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SettingError(FILE_FLAG, str(path), "is not a regular file, which can be read again")
        return file.read(bytes_max)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; do not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _parse_lines(text: str, taken: dict[str, str], count_max: int) -> tuple[Upstream, ...]:
    """Parse the lines of a file. `taken` are names in use, each with where. Raises ValueError.

    `taken` gets the names of the file as well. Raises it at the first line that is wrong, with the
    number of the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = _COMMENT.sub("", line).strip()
        if not entry:
            continue
        try:
            pds = parse_upstream(entry, "pds")
        except ValueError as error:
            raise ValueError(f"line {number}: {shown(entry)!r} {error}") from None
        if pds.name in taken:
            problem = f"is the name of {taken[pds.name]} as well: remove one, or write name=URL"
            raise ValueError(f"line {number}: {pds.name!r} {problem}")
        taken[pds.name] = f"line {number}"
        found.append(pds)
        if len(found) > count_max:
            raise ValueError(f"line {number}: too many: at most {count_max} upstreams")
    return tuple(found)


def is_mirror(seqs: Iterable[int], tip: int) -> bool:
    """Tell whether a log has the positions of another Jetstream, by the numbers of its cursors.

    In such a log, the cursor is the position of the newest event. `tip` is above 0 in a log with
    events.

    A cursor of a firehose is a `seq`, which is far below a time in microseconds. So one that equals the
    tip is a position.
    """
    return bool(tip) and tip in seqs


def is_empty(path: Path | None, upstreams: Iterable[Upstream]) -> bool:
    """Return whether there is a file of PDSes and none of the upstreams is of it.

    Without a file this is False.
    """
    return path is not None and all(each.kind != "pds" for each in upstreams)


def named(names: Iterable[str], count_max: int) -> str:
    """Return the first names as a text, and how many there are beside them.

    Such as `a, b and 3 more`, for a log line.
    """
    names = list(names)
    more = len(names) - count_max
    return ", ".join(names[:count_max]) + (f" and {more} more" if more > 0 else "")
