"""`jetstream dictionary`: get the public zstd dictionary for compressed messages.

A server fetches it by itself when a client asks for it. The command is for machines where that should be
done beforehand, such as in the build of an image.
"""

from __future__ import annotations

import signal
from typing import Annotated

from cyclopts import Parameter

from jetstream.cli.log import DEFAULT_DATA_DIR, DataDir
from jetstream.dictionary.fetch import fetch as fetch_dictionary
from jetstream.dictionary.file import URL_VARIABLE
from jetstream.settings import DICTIONARY_URL, unset_if_empty


def fetch(
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    url: Annotated[
        str,
        Parameter(
            env_var=URL_VARIABLE, env_var_split=unset_if_empty, help="Where to fetch it from, before pip."
        ),
    ] = DICTIONARY_URL,
) -> None:
    """Fetch the dictionary with which clients of the public Jetstream read compressed messages.

    Does nothing if the directory has it. A running server uses it within minutes, when a client asks for it.
    """
    # A server in the background of a shell ignores this signal, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"the public zstd dictionary is in {fetch_dictionary(data_dir, url)}")  # noqa: T201 - the output
