"""Samples of repos: which percentages there are, and which repos are in them."""

from __future__ import annotations

import pytest

from jetstream.errors import InvalidParameter
from jetstream.model.sample import SAMPLE_WHOLE, in_sample, parse_sample


@pytest.mark.parametrize(
    ("percent", "sample"),
    [("", SAMPLE_WHOLE), ("100", SAMPLE_WHOLE), ("5", 500), ("0.01", 1), ("12.3", 1230)],
)
def test_samples_that_are_good(percent: str, sample: int) -> None:
    assert parse_sample(percent) == sample


@pytest.mark.parametrize(
    "percent", ["0", "0.00", "100.01", "101", "1000", "-1", "1.234", ".5", "5%", "5.", "x", "\u0665"]
)
def test_samples_that_are_bad(percent: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_sample(percent)
    assert (caught.value.name, caught.value.value) == ("sample", percent)


def test_a_sample_has_its_share_of_repos_the_same_each_time_and_all_of_a_smaller_one() -> None:
    dids = [b"did:plc:%024d" % number for number in range(10_000)]
    chosen = {share: {did for did in dids if in_sample(did, share)} for share in (1, 10, 500, 2_000, 9_990)}

    assert chosen[1] <= chosen[10] <= chosen[500] <= chosen[2_000] <= chosen[9_990]
    assert 450 < len(chosen[500]) < 550
    assert 1_900 < len(chosen[2_000]) < 2_100
    # A promise to clients: these do not change with the process or the version.
    assert [in_sample(did, 5_000) for did in dids[:8]] == [False, False, True, True, False, False, True, True]
