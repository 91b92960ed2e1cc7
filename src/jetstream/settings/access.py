"""The settings of who may connect.

Annotations are values here: cyclopts would look up names in the module of `Settings`.
"""

from dataclasses import dataclass
from typing import Annotated

from jetstream.settings.declaring import setting
from jetstream.settings.values import Network, parse_networks


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Part of `Settings`."""

    trusted_proxies: Annotated[
        tuple[Network, ...],
        setting(
            "TRUSTED_PROXIES",
            "Addresses and networks of reverse proxies whose X-Forwarded-* fields are read.",
            parse_networks,
            lambda networks: ",".join(map(str, networks)) or "none",
            n_tokens=1,
            accepts_keys=False,
            metavar="NETWORKS",
        ),
    ] = ()
