"""The log in PostgreSQL keeps what each log promises: the suite of all engines."""

from __future__ import annotations

from tests.logs.contract import *  # noqa: F403
