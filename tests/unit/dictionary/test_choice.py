from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from tests.unit.delivery.framing.test_zstd import DICTIONARY

from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.dictionary.choice import Dictionaries
from jetstream.dictionary.file import ID
from jetstream.dictionary.own import OwnDictionary
from jetstream.dictionary.public import PublicDictionary
from jetstream.errors import InvalidParameter

OWN_ID, FILE_ID = 41_000, 40_000
SAMPLES = [b'{"did":"did:plc:%024d","n":%d}' % (n, n) for n in range(2_000)]


@pytest.fixture
def own(tmp_path: Path) -> OwnDictionary:
    path = tmp_path / "own"
    path.write_bytes(zstandard.train_dictionary(4096, [*SAMPLES], dict_id=OWN_ID).as_bytes())
    return OwnDictionary(path)


@pytest.fixture
def given_file(tmp_path: Path) -> PublicDictionary:
    """Return the dictionary of `--zstd-dictionary FILE`."""
    path = tmp_path / "given"
    path.write_bytes(DICTIONARY)
    return PublicDictionary(str(path), tmp_path, _fetch)


@pytest.fixture
def missing(tmp_path: Path) -> PublicDictionary:
    """Return the public dictionary, which is not there yet."""
    return PublicDictionary("auto", tmp_path / "nothing", _fetch)


async def _fetch() -> None:
    raise NotImplementedError


def selected(dictionaries: Dictionaries, dictionary_id: int | None, compress: bool) -> ZstdFraming:
    framing = dictionaries.framing(dictionary_id, compress)
    assert framing is not None
    return framing


def refused(dictionaries: Dictionaries, dictionary_id: int | None, compress: bool) -> str:
    with pytest.raises(InvalidParameter) as caught:
        dictionaries.framing(dictionary_id, compress)
    return str(caught.value)


def test_compress_selects_that_of_v1_clients_and_an_id_the_one_that_has_it(
    own: OwnDictionary, given_file: PublicDictionary
) -> None:
    both = Dictionaries(given_file, own)
    assert selected(both, None, True).dictionary_id == FILE_ID
    assert selected(both, OWN_ID, False).dictionary_id == OWN_ID
    for compress in (False, True):
        assert selected(both, FILE_ID, compress) is selected(both, None, True)


def test_all_readers_share_one_framing(own: OwnDictionary, given_file: PublicDictionary) -> None:
    both = Dictionaries(given_file, own)
    assert selected(both, OWN_ID, False) is selected(both, OWN_ID, False) is own.framing


@pytest.mark.parametrize("dictionary_id", [0, 1, FILE_ID, ID, 1 << 40])
@pytest.mark.parametrize("compress", [False, True])
def test_an_unknown_id_is_refused_with_the_current_one(
    dictionary_id: int, compress: bool, own: OwnDictionary
) -> None:
    text = refused(Dictionaries(None, own), dictionary_id, compress)
    assert text == (
        f"zstdDictionary: '{dictionary_id}' is not a dictionary here: "
        f"the current one is {OWN_ID}, at /zstd-dictionary"
    )


def test_ours_contradicts_compress(own: OwnDictionary, given_file: PublicDictionary) -> None:
    text = refused(Dictionaries(given_file, own), OWN_ID, True)
    assert text.startswith(f"zstdDictionary: '{OWN_ID}' selects another dictionary than compress=true")


def test_where_that_of_v1_clients_is_not_offered_the_refusal_names_ours(own: OwnDictionary) -> None:
    text = refused(Dictionaries(None, own), None, True)
    assert text == (
        f"compress: 'true' is not offered here: leave it out for plain JSON, or use zstdDictionary={OWN_ID}"
    )


async def test_the_public_one_has_its_id_before_it_is_there(
    own: OwnDictionary, missing: PublicDictionary
) -> None:
    assert missing.dictionary_id == ID
    for dictionary_id in (None, ID):
        assert Dictionaries(missing, own).framing(dictionary_id, True) is None
    await missing.close()


def test_ours_is_not_read_before_it_is_needed(given_file: PublicDictionary, tmp_path: Path) -> None:
    both = Dictionaries(given_file, OwnDictionary(tmp_path / "nothing"))
    assert selected(both, None, True).dictionary_id == FILE_ID
    with pytest.raises(FileNotFoundError):
        both.framing(OWN_ID, False)
