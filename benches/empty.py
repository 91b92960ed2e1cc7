"""What a server takes that has nothing to do: an empty log, a relay that says nothing, no subscriber."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benches.limits import Limit
from benches.stand import settle, stand

TITLE: Final = "Memory of an empty server"
SETTLE_S: Final = 3.0
LIMITS: Final = (Limit("rss_mib", 50),)
_FIELDS: Final = {"rss_mib": "Rss", "pss_mib": "Pss", "anonymous_mib": "Anonymous"}


def main() -> dict[str, float]:
    """Run once. Return its memory in MiB: resident, with shared pages in part, and what is no file."""
    with stand() as (_, server):
        settle(SETTLE_S)
        figures = _memory_mib(server.pid)
    print(f"empty: {figures['rss_mib']:.1f} MiB ({LIMITS[0]}), Pss {figures['pss_mib']:.1f} MiB", flush=True)
    return figures


def _memory_mib(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {figure: kib[name] / 1024 for figure, name in _FIELDS.items()}


if __name__ == "__main__":
    main()
