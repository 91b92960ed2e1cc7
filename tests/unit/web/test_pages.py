from __future__ import annotations

import pytest

from jetstream.metrics import Metrics
from jetstream.web import pages
from jetstream.web.request import Headers, Request

ASKED = Request("GET", "/metrics", "", 1, Headers())


def test_figures_are_new_each_time_until_they_are_asked_for_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "RENDERINGS_PER_S", 0)
    monkeypatch.setattr(pages, "RENDERINGS_BURST", 3)
    monkeypatch.setattr(pages, "RENDERING_KEPT_S", 1e9)
    page = pages.metrics(Metrics())

    answers = [page(ASKED) for _ in range(9)]

    assert len({id(answer) for answer in answers}) == 4  # the first one is free
    assert answers[3:] == [answers[3]] * 6


def test_figures_that_are_too_old_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "RENDERINGS_BURST", 0)
    monkeypatch.setattr(pages, "RENDERING_KEPT_S", 0)
    page = pages.metrics(Metrics())

    assert page(ASKED) is not page(ASKED)
