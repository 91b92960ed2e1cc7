"""Times that flags give: `--since` and `--until` of `jetstream tail` and `jetstream log cat`."""

from __future__ import annotations

from jetstream.errors import SettingError
from jetstream.model.timestamp import parse_time


def parse_moment(flag: str, text: str, now_us: int) -> int:
    """Return the time that a flag gives, in unix microseconds: see `parse_time`. Raises SettingError.

    `now_us` is what ages are counted from. An age needs no sign here: `10m` is `-10m`.
    """
    signed = f"-{text}" if text[:1].isdigit() and text[-1:] in tuple("smhdw") else text
    try:
        return parse_time(signed, now_us)
    except ValueError as error:
        raise SettingError(flag, text, str(error)) from error
