"""The certificate with which the server makes TLS handshakes, and how a new one comes into force.

The files are looked at once a second, and at a SIGHUP. Connections that are open keep what they have. A
file that cannot be used changes nothing: the condition `certificate` says why until one can be. It also says
that the certificate in force is about to expire.

    check, once a second ──▶ have the files changed? ──▶ load ──▶ `context` of the next handshakes
                                                               └─ cannot be used: condition `certificate`

The chain and the key may be two files, which are not replaced at the same moment. In between they do not
belong together, which is a condition until the next look finds the second one.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from jetstream.conditions import Conditions
from jetstream.errors import SettingError

# How long before its end an operator is warned: tools that renew certificates do so earlier, with 30 days
# left.
EXPIRES_SOON: Final = timedelta(days=14)
_CONDITION: Final = "certificate"

# For a new certificate. What is wrong with one is a condition.
logger = structlog.get_logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]  # of each file: when it was changed, its size, its number


class Certificate:
    """A certificate and its key, in PEM files. Raises SettingError if they cannot be used."""

    def __init__(
        self,
        chain: Path,
        key: Path,
        conditions: Conditions,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        # The files: the certificate with those that signed it, and its key. They may be one file.
        self._chain = chain
        self._key = key
        # Where `check` sets and clears the condition.
        self._conditions = conditions
        # The time in UTC, to compare with the end of the certificate.
        self._now = now
        # Of the files that were last read, whether they could be used or not.
        self._stamp = self._look()
        # What new connections are made with, and when that expires; replaced by `check`.
        self.context = load(chain, key)
        self.expires = expiry(chain)
        # Why the files that were last read are not in force; None: they are.
        self._problem: str | None = None

    def check(self) -> None:
        """Use the files if they have changed. To be called now and then.

        It costs two system calls while nothing has changed. A file with which something is wrong is read
        again only when it has changed again.
        """
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._renew()
        self._conditions.set(_CONDITION, self._problem or self._expiring())

    def _renew(self) -> None:
        """Read the files, and use them for new handshakes; else keep the problem for the condition."""
        try:
            self.context, self.expires = load(self._chain, self._key), expiry(self._chain)
        except SettingError as error:
            self._problem = (
                f"{error}; the one before stays in force: replace the file, it is read again by itself"
            )
        else:
            self._problem = None
            logger.info("tls: a new certificate is in force", file=str(self._chain))

    def _expiring(self) -> str | None:
        """Return a sentence that the certificate has expired or is about to; else None."""
        left = self.expires - self._now()
        if left > EXPIRES_SOON:
            return None
        ends = f"expires in {left.days} days" if left > timedelta(0) else "has expired: clients refuse it"
        return f"the certificate in {self._chain} {ends} ({self.expires:%Y-%m-%d %H:%M} UTC): renew it"

    def _look(self) -> Stamp:
        """Return what changes when a file is replaced; empty if one is missing."""
        try:
            found = (self._chain.stat(), self._key.stat())
        except OSError:
            return ()
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)


def load(chain: Path, key: Path) -> ssl.SSLContext:
    """Return what handshakes are made with: TLS 1.2 or newer, and HTTP/1.1. Raises SettingError.

    The files are opened before OpenSSL reads them, since its errors do not say which one is missing. A key
    with a password is refused. There is no check of the names, and none of the time: a certificate that
    has expired is used, and is a condition.
    """
    for flag, file in (("--tls-cert", chain), ("--tls-key", key)):
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise SettingError(flag, str(file), f"cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise SettingError("--tls-cert", str(chain), _problem(error, key)) from error
    return context


def expiry(chain: Path) -> datetime:
    """Return when a certificate expires: the first one in the file, which is the server's own.

    Raises SettingError: OpenSSL takes some forms that this does not, and the file may have changed.
    """
    try:
        return x509.load_pem_x509_certificates(chain.read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError) as error:
        problem = f"has no certificate in PEM whose end can be read: {error}"
        raise SettingError("--tls-cert", str(chain), problem) from error


def _no_password() -> str:
    """Fail where a key needs a password: the library would ask on the terminal."""
    raise ValueError("needs a password")


def _problem(error: Exception, key: Path) -> str:
    """Return what is wrong with a chain and a key, as the end of a sentence, with what to do."""
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"does not belong to the key in {key}: --tls-key"
    if isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
        return f"cannot be used: the key in {key} has a password: remove it"
    return f"cannot be used with the key in {key}: both must be PEM"
