"""Errors of the simulator that are not about its data."""

from __future__ import annotations

from jetstream.errors import JetstreamError


class MissingExtra(JetstreamError):
    """A package of an optional dependency ("extra") is not installed."""

    def __init__(self, feature: str, extra: str, module: str | None) -> None:
        self.feature = feature
        self.extra = extra
        self.module = module
        super().__init__(f"{feature} needs {module}: pip install '.[{extra}]'")
