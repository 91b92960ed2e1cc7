"""Why there is no key for a DID."""

from __future__ import annotations

from typing import Final

# Each reason, and what it means: labels of a metric, and `docs/keys.md`.
KEY_FAILURES: Final = {
    "not_found": "no directory knows the DID, or its account is tombstoned",
    "no_key": "the document has no signing key",
    "bad_key": "the signing key of the document cannot be read",
    "method": "the DID is neither a `did:plc` nor a `did:web` of a host name",
    "not_public": "the host of a `did:web` has no public address",
    "wrong_did": "the document is that of another DID",
    "malformed": "the answer is no JSON, no DID document, or no audit log",
    "too_big": "the answer is larger than allowed",
    "redirect": "the answer is a redirect, which is never followed",
    "status": "another HTTP status than 200, 404, 410 and 429",
    "rate_limited": "HTTP status 429, or the directory asked for a pause",
    "timeout": "no answer in time",
    "unreachable": "no connection, or it was lost",
    "tls": "the certificate of the host is not valid",
    "overload": "too many requests wait already",
    "internal": "an error of the server itself: the log has its traceback, at most once a minute",
}
# What is so until the account changes it. Everything else may be over in a moment.
LASTING: Final = frozenset({"not_found", "no_key", "bad_key", "method"})


class NoKey(Exception):
    """There is no key: `reason` is one of `KEY_FAILURES`, `detail` says what was wrong.

    `retry_after` is how many seconds the host asked to be left alone; 0: it did not. `status` is that of the
    response; 0: the reason is another one.
    """

    def __init__(self, reason: str, detail: str = "", *, retry_after: float = 0.0, status: int = 0) -> None:
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.status = status
        super().__init__(f"{reason}: {detail}" if detail else reason)
