"""What a server checks of the messages that it reads: the values of `--verify`.

Apart from what does the checking: the settings and `intake` need the names without its memory.
"""

from __future__ import annotations

from typing import Final, Literal

# From nothing to all. `off` and `cid` take what the commit block says, without its signature: it is what
# upstreams are merged by.
# `signature` also checks what the owner has signed, and `full` that nothing was left out.
Mode = Literal["off", "cid", "signature", "full"]
# The modes that check signatures. They need keys of accounts, and so a PLC directory.
SIGNED_MODES: Final[frozenset[Mode]] = frozenset({"signature", "full"})
