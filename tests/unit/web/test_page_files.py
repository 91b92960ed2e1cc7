"""The files of the page: what a browser is sent, and what it is told about them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jetstream.steps import finish
from jetstream.web import page_files
from jetstream.web.http import Request, Response
from jetstream.web.page_files import PREFIX, PageFiles, html

FOLDER = Path(page_files.__file__).with_name("page")
FILES = PageFiles()
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".html")
SCRIPTS = [name for name in NAMES if name.endswith(".js")]


def answer(path: str, method: str = "GET", **headers: str) -> Response:
    request = Request(method, path, "", 1, {"host": "jetstream.example", **headers})
    return finish(FILES.answer(request, None))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_served_with_its_type(name: str) -> None:
    response = answer(PREFIX + name)
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    assert (response.status, response.body) == (200, (FOLDER / name).read_bytes())
    assert response.content_type == types[name.rpartition(".")[2]]


def test_the_page_may_load_nothing_of_other_sites_and_run_no_other_scripts() -> None:
    for response in (answer(f"{PREFIX}main.js"), html(Request("GET", "/", "", 1, {}), "<p>")):
        headers = response.headers or {}
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert policy["default-src"] == policy["trusted-types"] == policy["frame-ancestors"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_template_has_no_script_or_style_of_its_own_and_names_no_other_site() -> None:
    tags = re.findall(r"<(?:script|style)[^>]*>", FILES.template)
    assert tags == ['<script type="module" src="page/main.js">']
    assert not re.search(r'\son\w+=|\sstyle=|(?:src|href)="(?:https?:)?//', FILES.template)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_never_makes_html_of_text(name: str) -> None:
    code = re.sub(r"^\s*(?://|/?\*).*$", "", (FOLDER / name).read_text(), flags=re.MULTILINE)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", code
    )


def test_each_script_is_loaded() -> None:
    text = "".join((FOLDER / name).read_text() for name in SCRIPTS)
    imported = set(re.findall(r'from "\./([a-z]+\.js)"', text))
    assert imported | {"main.js"} == set(SCRIPTS)


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", {}', "*"])
def test_a_browser_that_has_a_file_is_sent_no_bytes(known: str) -> None:
    etag = (answer(f"{PREFIX}page.css").headers or {})["ETag"]
    assert answer(f"{PREFIX}page.css", **{"if-none-match": known.format(etag)}).status == 304
    assert answer(f"{PREFIX}page.css", **{"if-none-match": '"other"'}).status == 200


def test_a_change_has_another_etag(tmp_path: Path) -> None:
    etags = []
    for text in ("a", "b"):
        (tmp_path / "a.js").write_text(text)
        request = Request("GET", f"{PREFIX}a.js", "", 1, {})
        etags.append((finish(PageFiles(tmp_path).answer(request, None)).headers or {})["ETag"])
    assert len(set(etags)) == 2


@pytest.mark.parametrize("name", ["nothing.js", "", "../page_files.py", "index.html", "main.js/x"])
def test_another_name_is_not_found(name: str) -> None:
    response = answer(PREFIX + name)
    assert (response.status, response.body) == (
        404,
        b"there is no such file: the page is at http://jetstream.example/\n",
    )


def test_other_methods_are_refused_and_a_browser_may_ask_first() -> None:
    refused = answer(f"{PREFIX}main.js", "POST")
    assert (refused.status, refused.closing) == (405, True)
    assert refused.body == b"/page/main.js is not for POST: use GET\n"
    assert (answer(f"{PREFIX}main.js", "OPTIONS").headers or {})["Allow"] == "GET, HEAD, OPTIONS"
    assert answer(f"{PREFIX}main.js", "HEAD").status == 200


def test_the_icon_has_a_path_of_its_own() -> None:
    icon = FILES.icon(Request("GET", "/favicon.ico", "", 1, {}))
    assert icon == answer(f"{PREFIX}favicon.svg")


def test_files_are_read_when_they_are_needed_and_once(tmp_path: Path) -> None:
    files = PageFiles(tmp_path)
    (tmp_path / "a.css").write_text("one")
    request = Request("GET", f"{PREFIX}a.css", "", 1, {})
    assert finish(files.answer(request, None)).body == b"one"
    (tmp_path / "a.css").write_text("two")
    assert finish(files.answer(request, None)).body == b"one"
