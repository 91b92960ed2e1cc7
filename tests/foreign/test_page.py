"""The page at `/` in a real browser: what it shows, what it does, and who can use it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Locator, Page, Route, expect
from tests.builders import DID, REV, Op, account, commit, create, delete, identity, like
from tests.edges import ended_by, serving
from tests.foreign.browser import PATIENCE_MS, Tab, looking
from tests.foreign.conftest import missing
from tests.programs import program
from tests.relay import Relay, refuse
from tests.serving import LOOPBACK, Start, published, running, until

from jetstream.app import Service
from jetstream.settings import Address, Settings
from jetstream.supervisor.supervisor import Supervisor

POST = "app.bsky.feed.post"
OTHER = "did:plc:z72i7hdynmk6r22z27h6tvur"
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
WIRES = ("classic", "v1", "v2")
expect.set_options(timeout=PATIENCE_MS)


def post(text: str, number: int = 0, **fields: Any) -> Op:
    return create(f"{POST}/{number}", {"$type": POST, "text": text, **fields})


def now() -> str:
    """Return the time of a frame that has just been made."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Upstream:
    """Publishes frames with rising numbers."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.seq = 0

    def post(self, *texts: str, **fields: Any) -> None:
        """Publish a commit with a post for each text. `fields` are of the commit."""
        for text in texts:
            self.seq += 1
            frame = commit(self.seq, [post(text, self.seq)], **{"time": now(), **fields})
            self._relay.publish([(self.seq, frame)])

    def publish(self, *makers: Any) -> None:
        """Publish what makes a frame of a number."""
        for make in makers:
            self.seq += 1
            self._relay.publish([(self.seq, make(self.seq))])


@pytest.fixture
def upstream(relay: Relay) -> Upstream:
    return Upstream(relay)


@pytest.fixture
async def service(start: Start) -> Service:
    return await start(upstream_cursor=0)


@pytest.fixture
async def tab(service: Service) -> AsyncIterator[Tab]:
    async with looking(service.port) as tab:
        yield tab


async def connected(tab: Tab) -> None:
    await expect(tab.state).to_have_text("Connected")


class TestFigures:
    async def test_it_shows_the_state_the_upstream_and_the_rates(self, tab: Tab, upstream: Upstream) -> None:
        page = tab.page
        upstream.post("one", "two")
        header = page.get_by_role("banner").get_by_role("status")
        await expect(header).to_have_text("ready")
        table = page.get_by_role("region", name="Upstreams").get_by_role("table")
        await expect(table.get_by_role("row").nth(1)).to_contain_text("connected")
        events = page.get_by_role("region", name="Figures")
        await expect(events.get_by_text("2 since the start")).to_be_visible()
        collections = page.get_by_role("table", name="Collections, events/s")
        await expect(collections.get_by_role("rowheader", name=POST)).to_be_visible()
        for title in ("Kinds, events/s", "Log", "Subscribers by wire", "Process"):
            await expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()

    async def test_subscribers_are_shown_by_wire_and_compression(self, tab: Tab) -> None:
        await tab.start(spelling="v2")
        await connected(tab)
        card = tab.page.get_by_role("region", name="Subscribers by wire")
        for name in ("wire v2", "not compressed"):
            row = card.locator("dl > div", has_text=name)
            await expect(row.get_by_role("definition")).to_have_text("1")

    async def test_what_is_wrong_comes_with_what_to_do(self, tab: Tab, upstream: Upstream) -> None:
        upstream.post("old", time="2024-01-01T00:00:00.000Z")
        reasons = tab.page.get_by_role("list", name="What is wrong, and what to do")
        await expect(reasons.get_by_role("listitem")).to_contain_text(
            re.compile("lag events are .* old.*What to do: wait")
        )
        await expect(tab.page.get_by_role("banner").get_by_role("status")).to_have_text("not ready")

    async def test_the_lag_of_an_upstream_that_is_gone_is_not_known(
        self, tab: Tab, upstream: Upstream, relay: Relay
    ) -> None:
        row = tab.page.get_by_role("region", name="Upstreams").get_by_role("table").get_by_role("row").nth(1)
        upstream.post("one")
        await expect(row.get_by_role("cell").nth(1)).not_to_have_text("\N{EN DASH}")
        relay.script.extend(refuse(503) for _ in range(100))
        await relay.cut()
        await expect(row).to_contain_text("reconnecting")
        await expect(row.get_by_role("cell").nth(1)).to_have_text("\N{EN DASH}")

    async def test_one_problem_is_shown_once(self, tab: Tab) -> None:
        async def full_disk(route: Route) -> None:
            response = await route.fetch()
            check = {"check": "log_unwritable", "text": "the log cannot be written", "hint": "free space"}
            reason = {"condition": "log_unwritable", "text": "the disk is full", "hint": "free space"}
            await route.fulfill(json=await response.json() | {"not_ready": [check], "reasons": [reason]})

        await tab.page.route("**/status.json", full_disk)
        reasons = tab.page.get_by_role("list", name="What is wrong, and what to do")
        await expect(reasons.get_by_role("listitem")).to_have_count(1)
        await expect(reasons.get_by_role("listitem")).to_contain_text("log_unwritable the disk is full")

    async def test_it_links_to_what_programs_read(self, tab: Tab) -> None:
        links = tab.page.get_by_role("navigation", name="Endpoints").get_by_role("link")
        names = ["metrics", "health", "ready", "status.json", "openapi.json", "cursors", "gaps"]
        assert await links.all_text_contents() == [*names, "docs"]
        for name in names:
            found = await tab.page.request.get(f"{tab.base}{name}")
            assert found.status in {200, 503}

    async def test_a_status_every_few_seconds_is_all_that_it_costs(self, tab: Tab) -> None:
        def polled() -> int:
            return sum(url.endswith("/status.json") for url in tab.asked)

        await until(lambda: polled() > 2)
        icon = f"{tab.base}page/favicon.svg"  # in the page, and of the tab
        files = [url for url in tab.asked if not url.endswith("/status.json") and url != icon]
        assert len(files) == len(set(files))
        assert all(url == tab.base or url.startswith(f"{tab.base}page/") for url in files)


class TestViewer:
    @pytest.mark.parametrize("wire", WIRES)
    async def test_events_appear_as_they_come(self, wire: str, tab: Tab, upstream: Upstream) -> None:
        await tab.start(spelling=wire)
        await connected(tab)
        delays = []
        for number in range(5):
            upstream.post(f"post {number}")
            await expect(tab.rows.first).to_contain_text(f"create{POST}post {number}")
            delays.append(int(await tab.page.locator("#events").get_attribute("data-delay-ms") or ""))
        assert min(delays) < 1000  # measured by the page, from the storing of an event until it was drawn

    @pytest.mark.parametrize("wire", WIRES)
    async def test_every_kind_is_named(self, wire: str, tab: Tab, upstream: Upstream) -> None:
        await tab.start(spelling=wire)
        await connected(tab)
        upstream.publish(
            lambda seq: commit(seq, [delete(f"{POST}/9")]),
            lambda seq: identity(seq, handle="a.example"),
            lambda seq: account(seq, active=False, status="takendown"),
        )
        await expect(tab.rows).to_have_text(
            [
                re.compile("account.*not active: takendown"),
                re.compile("identity.*a.example"),
                re.compile(f"delete{POST}9"),
            ]
        )

    @pytest.mark.parametrize("wire", WIRES)
    async def test_filters_select(self, wire: str, tab: Tab, upstream: Upstream) -> None:
        await tab.start(collections=POST, dids=f"{DID} {OTHER}", text="good morning", spelling=wire)
        await connected(tab)
        upstream.post("hello", "Good morning, all")
        upstream.publish(lambda seq: commit(seq, [like(seq)]))
        upstream.post("good morning to you", repo="did:plc:" + "x" * 24)
        upstream.post("good morning from another", repo=OTHER)
        await expect(tab.rows).to_have_text(
            [re.compile("good morning from another"), re.compile("Good morning, all")]
        )
        await expect(tab.page.get_by_text(re.compile("events it selects"))).to_be_visible()

    async def test_kinds_select(self, tab: Tab, upstream: Upstream) -> None:
        await tab.page.get_by_role("checkbox", name="commit").uncheck()
        await tab.page.get_by_role("checkbox", name="account").uncheck()
        await tab.start()
        await connected(tab)
        upstream.post("one")
        upstream.publish(account, identity)
        await expect(tab.rows).to_have_text([re.compile("identity")])

    async def test_often_used_collections_are_a_click_away(self, tab: Tab) -> None:
        field = tab.page.get_by_label("Collections", exact=True)
        await tab.button("posts").click()
        await tab.button("likes").click()
        await expect(field).to_have_value(f"{POST}, app.bsky.feed.like")
        await expect(tab.page.get_by_role("button", name="likes", pressed=True)).to_be_visible()
        await tab.button("posts").click()
        await expect(field).to_have_value("app.bsky.feed.like")

    @pytest.mark.parametrize("wire", WIRES)
    async def test_it_starts_in_the_past(
        self, wire: str, tab: Tab, upstream: Upstream, service: Service
    ) -> None:
        upstream.post("before")
        await published(service, 1)
        await tab.start(spelling=wire, start="10 minutes ago")
        await expect(tab.rows).to_have_text([re.compile("before")])
        await tab.ask(start="at a time…")
        await tab.start(time=datetime.now().astimezone().strftime("%Y-%m-%dT00:00:00"))
        await expect(tab.rows).to_have_text([re.compile("before")])
        await tab.start(start="now")
        await connected(tab)
        upstream.post("after")
        await expect(tab.rows).to_have_text([re.compile("after")])

    async def test_it_pauses_goes_on_clears_and_stops(
        self, tab: Tab, upstream: Upstream, service: Service
    ) -> None:
        await tab.start()
        await connected(tab)
        upstream.post("one")
        await expect(tab.rows).to_have_count(1)
        await tab.button("Pause").click()
        upstream.post("two", "three")
        await expect(tab.page.get_by_text("paused, 2 more came")).to_be_visible()
        await expect(tab.rows).to_have_count(1)
        await tab.button("Resume").click()
        await expect(tab.rows).to_have_text([re.compile(each) for each in ("three", "two", "one")])
        await tab.button("Clear").click()
        await expect(tab.rows).to_have_count(0)
        upstream.post("four")
        await expect(tab.rows).to_have_text([re.compile("four")])
        await tab.button("Stop").click()
        await expect(tab.state).to_have_text("Stopped")
        await until(lambda: len(service.subscribe) == 0)

    async def test_the_list_is_bounded_and_has_the_newest(
        self, tab: Tab, upstream: Upstream, service: Service
    ) -> None:
        upstream.publish(*[lambda seq: commit(seq, [post(f"post {seq}", seq)])] * 2_000)
        await published(service, 2_000)
        await tab.start(start="10 minutes ago")
        await expect(tab.page.get_by_text("2,000 events")).to_be_visible()
        await expect(tab.rows.first).to_contain_text("post 2000")
        assert await tab.rows.count() == 200
        await expect(tab.rows.last).to_contain_text("post 1801")

    async def test_the_list_stands_still_under_the_pointer(self, tab: Tab, upstream: Upstream) -> None:
        await tab.start()
        await connected(tab)
        upstream.post("one")
        await tab.rows.first.hover()
        upstream.post("two")
        await expect(tab.page.get_by_text("standing still while you are in the list")).to_be_visible()
        await expect(tab.rows).to_have_count(1)
        await tab.page.mouse.move(0, 0)
        await expect(tab.rows).to_have_count(2)


class TestRefusals:
    @pytest.mark.parametrize("wire", WIRES)
    async def test_the_sentence_of_the_server_is_shown(self, wire: str, service: Service) -> None:
        async with looking(service.port, requests_fail=True) as tab:
            await tab.start(collections="app.bsky.feed.po*", spelling=wire)
            await expect(tab.page.get_by_role("alert")).to_contain_text("'app.bsky.feed.po*'")
            await expect(tab.state).to_have_text("Refused")
            await tab.start(collections=POST)
            await connected(tab)
            await expect(tab.page.get_by_role("alert")).to_be_hidden()

    async def test_a_full_server_is_asked_again(self, relay: Relay, start: Start) -> None:
        service = await start(upstream_cursor=0, max_subscribers=0)
        async with looking(service.port, requests_fail=True) as tab:
            await tab.start()
            await expect(tab.state).to_have_text(re.compile(r"connecting again in \d+ s"))

    async def test_what_cannot_be_asked_for_is_said_at_once(self, tab: Tab) -> None:
        for name in ("commit", "identity", "account"):
            await tab.page.get_by_role("checkbox", name=name).uncheck()
        await tab.start()
        await expect(tab.page.get_by_role("alert")).to_have_text("kinds: choose at least one")


class TestEvent:
    HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\u202e'

    @pytest.mark.parametrize("wire", WIRES)
    async def test_a_click_opens_the_record_with_links(self, wire: str, tab: Tab, upstream: Upstream) -> None:
        uri = f"at://{OTHER}/{POST}/1"
        fields = {"reply": {"parent": {"uri": uri}}, "link": "https://example.com/?a=1", "big": 2**63 - 1}
        await tab.start(spelling=wire)
        await connected(tab)
        upstream.publish(lambda seq: commit(seq, [post(self.HOSTILE, 7, **fields)]))
        await tab.rows.first.click()
        dialog = tab.page.get_by_role("dialog", name=f"create · {POST}")
        hrefs = {
            "Repository": f"https://pdsls.dev/at://{DID}",
            "Record": f"https://pdsls.dev/at://{DID}/{POST}/7",
            "Post on bsky.app": f"https://bsky.app/profile/{DID}/post/7",
            uri: f"https://pdsls.dev/{uri}",
            "https://example.com/?a=1": "https://example.com/?a=1",
        }
        for name, href in hrefs.items():
            link = dialog.get_by_role("link", name=name, exact=True)
            await expect(link).to_have_attribute("href", href)
            await expect(link).to_have_attribute("target", "_blank")
            await expect(link).to_have_attribute("rel", "noopener noreferrer")
        shown = await dialog.get_by_role("region", name="The whole event").text_content()
        record = _record(json.loads(shown or ""))
        assert record == {"$type": POST, "text": self.HOSTILE, **fields}
        assert f'\n      "big": {2**63 - 1},\n' in (shown or "")
        await expect(dialog.get_by_text(re.compile("^bafyrei"))).to_have_count(int(wire != "classic"))
        await expect(dialog.get_by_text(REV, exact=True)).to_be_visible()

    async def test_hostile_text_stays_text(self, tab: Tab, upstream: Upstream) -> None:
        await tab.start()
        await connected(tab)
        upstream.post(self.HOSTILE)
        upstream.publish(lambda seq: identity(seq, handle="<b>bold</b>"))
        await expect(tab.rows.nth(1)).to_contain_text("<img src=x onerror=")
        await expect(tab.rows.first).to_contain_text("<b>bold</b>")
        await tab.rows.nth(1).click()
        await expect(tab.page.get_by_role("dialog")).to_contain_text('<img src=x onerror=\\"')
        assert await tab.page.title() == "Jetstream"
        assert await tab.page.locator("#events img, #events b, dialog img, dialog script").count() == 0

    async def test_a_link_that_is_a_script_is_no_link(self, tab: Tab, upstream: Upstream) -> None:
        await tab.start()
        await connected(tab)
        upstream.publish(lambda seq: commit(seq, [post("x", 1, uri="javascript:alert(1)")]))
        await tab.rows.first.click()
        dialog = tab.page.get_by_role("dialog")
        await expect(dialog).to_contain_text("javascript:alert(1)")
        assert await dialog.locator('a[href^="javascript"]').count() == 0

    async def test_a_delete_has_no_link_to_its_record(self, tab: Tab, upstream: Upstream) -> None:
        await tab.start()
        await connected(tab)
        upstream.publish(lambda seq: commit(seq, [delete(f"{POST}/7")]))
        await tab.rows.first.click()
        dialog = tab.page.get_by_role("dialog", name=f"delete · {POST}")
        await expect(dialog.get_by_role("link")).to_have_text(["Repository", DID])

    async def test_the_json_can_be_copied(self, service: Service, upstream: Upstream) -> None:
        permissions = ["clipboard-read", "clipboard-write"]
        async with looking(service.port, permissions=permissions) as tab:
            await tab.start()
            await connected(tab)
            upstream.post("copied")
            await tab.rows.first.click()
            await tab.button("Copy JSON").click()
            copied = await tab.page.evaluate("navigator.clipboard.readText()")
            assert _record(json.loads(copied))["text"] == "copied"


def _record(message: dict[str, Any]) -> Any:
    """Return the record in a message of any wire."""
    return message["payload"]["record"] if "payload" in message else message["commit"]["record"]


class TestSnippets:
    """The same subscription in other programs: each is run as it is shown."""

    FIELDS: ClassVar = {"collections": f"{POST}, app.bsky.graph.*", "text": "it's", "start": "10 minutes ago"}

    @staticmethod
    async def shown(tab: Tab, name: str) -> str:
        await tab.page.get_by_role("tab", name=name).click()
        return await tab.page.get_by_role("tabpanel", name=name).inner_text()

    async def test_the_address_says_what_is_chosen(self, tab: Tab) -> None:
        await tab.ask(**self.FIELDS, dids=DID)
        await tab.page.get_by_role("checkbox", name="account").uncheck()
        common = "kinds=commit&kinds=identity&text=it%27s&cursor=-10m"
        ws = tab.base.replace("http", "ws")
        lists = f"wantedCollections={POST}&wantedCollections=app.bsky.graph.*&wantedDids={DID}"
        assert await self.shown(tab, "websocat") == f"websocat '{ws}subscribe?{lists}&{common}'"
        events = f"curl -N '{tab.base}events?{lists}&{common}&wire=classic'"
        assert await self.shown(tab, "curl") == events
        await tab.ask(spelling="v1")
        assert await self.shown(tab, "websocat") == f"websocat '{ws}v1/subscribe?{lists}&{common}'"
        await tab.ask(spelling="v2")
        path = "xrpc/network.bsky.jetstream.subscribeEvents"
        lists = f"collections={POST}&collections=app.bsky.graph.*&dids={DID}&kinds=commit&kinds=identity"
        shown = re.escape(f"websocat '{ws}{path}?{lists}")
        # The kind `sync`, which this wire has, is chosen; a position is all that it takes as a cursor.
        assert re.fullmatch(
            shown + r"&kinds=sync&text=it%27s&cursor=\d{16}'", await self.shown(tab, "websocat")
        )

    async def test_classic_is_asked_for_where_it_is_not_the_default(self, start: Start) -> None:
        service = await start(wire="v1")
        async with looking(service.port) as tab:
            assert "/subscribe?wire=classic'" in await self.shown(tab, "websocat")

    @pytest.mark.parametrize("wire", WIRES)
    async def test_curl_and_python_print_the_same_events(
        self, wire: str, tab: Tab, upstream: Upstream, service: Service, tmp_path: Path
    ) -> None:
        upstream.post("it's here", "nothing")
        await published(service, 2)
        await tab.ask(**self.FIELDS, spelling=wire)
        curl = await self.shown(tab, "curl")
        (tmp_path / "snippet.py").write_text(await self.shown(tab, "Python"))
        shutil.which("curl") or missing("curl")
        async with program("sh", "-c", f"exec {curl} --silent") as printing:
            assert _record(json.loads(await printing.line()))["text"] == "it's here"
        async with program(sys.executable, tmp_path / "snippet.py") as printing:
            while "it's here" not in await printing.line():  # v2 may say first that the cursor is old
                pass

    async def test_javascript_runs_in_the_browser(
        self, tab: Tab, upstream: Upstream, service: Service
    ) -> None:
        upstream.post("it's here")
        await published(service, 1)
        await tab.ask(**self.FIELDS)
        async with tab.page.expect_console_message() as said:
            await tab.page.evaluate(f"{await self.shown(tab, 'JavaScript')}; 0")
        event = await (await said.value).args[0].json_value()
        assert event["commit"]["record"]["text"] == "it's here"

    async def test_it_can_be_copied(self, service: Service) -> None:
        permissions = ["clipboard-read", "clipboard-write"]
        async with looking(service.port, permissions=permissions) as tab:
            await tab.button("Copy").click()
            await expect(tab.page.get_by_text("copied", exact=True)).to_be_visible()
            copied = await tab.page.evaluate("navigator.clipboard.readText()")
            assert copied == await self.shown(tab, "websocat")


class TestRestart:
    async def test_it_survives_a_restart_and_loses_and_repeats_nothing(
        self, relay: Relay, upstream: Upstream, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"upstream": relay.url, "data_dir": tmp_path}
        first = Service(Settings(**given, listen=LOOPBACK, upstream_cursor=0))
        async with AsyncExitStack() as tabs:
            async with running(first):
                tab = await tabs.enter_async_context(looking(first.port, requests_fail=True))
                state = tab.page.get_by_role("banner").get_by_role("status")
                await tab.start()
                await connected(tab)
                upstream.post("before")
                await expect(tab.rows).to_have_count(1)
                await expect(state).to_have_text("ready")
            await expect(state).to_have_text("no answer")
            silence = tab.page.get_by_text("The server does not answer.")
            await expect(silence).to_be_visible()
            await expect(tab.state).to_have_text(re.compile(r"connecting again in \d+ s"))
            upstream.post("meanwhile")
            async with running(Service(Settings(**given, listen=Address("127.0.0.1", first.port)))) as again:
                await published(again, 2)
                await tab.button("Try now").click()
                await expect(state).to_have_text("ready")
                await expect(silence).to_be_hidden()
                await connected(tab)
                upstream.post("after")
                await expect(tab.rows).to_have_text(
                    [re.compile(each) for each in ("after", "meanwhile", "before")]
                )


class TestAccess:
    """Who cannot use a mouse, or does not see, or sees little, can use the page."""

    async def test_the_keyboard_is_enough(self, tab: Tab, upstream: Upstream) -> None:
        page, keyboard = tab.page, tab.page.keyboard
        await keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the live viewer")).to_be_focused()
        await keyboard.press("Enter")
        await keyboard.press("Tab")
        await expect(page.get_by_label("Collections", exact=True)).to_be_focused()
        await keyboard.type(POST)
        await keyboard.press("Enter")  # in a field of a form: it starts
        await connected(tab)
        upstream.post("one", "two", "three")
        await expect(tab.rows).to_have_count(3)
        await tab.button("Clear").focus()
        await keyboard.press("Tab")
        await expect(tab.rows.first).to_be_focused()
        await keyboard.press("ArrowDown")
        await keyboard.press("ArrowDown")
        await keyboard.press("ArrowUp")
        await expect(tab.rows.nth(1)).to_be_focused()
        await keyboard.press("End")
        await expect(tab.rows.last).to_be_focused()
        await keyboard.press("Home")
        await keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name=f"create · {POST}")
        await expect(dialog).to_contain_text("three")
        await keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(tab.rows.first).to_be_focused()
        await keyboard.press("Tab")
        await expect(page.get_by_role("tab", name="websocat", selected=True)).to_be_focused()
        await keyboard.press("ArrowLeft")
        await expect(page.get_by_role("tab", name="JavaScript", selected=True)).to_be_focused()

    async def test_everything_has_a_role_and_a_name(self, tab: Tab) -> None:
        await expect(tab.page.locator("body")).to_match_aria_snapshot(
            """
            - link "Skip to the live viewer"
            - banner:
              - heading "Jetstream" [level=1]
              - navigation "Page"
              - status
            - main:
              - region "Figures":
                - heading "Figures" [level=2]
                - img /Events in, per second in the last hour/
                - region "Collections, events/s":
                  - table "Collections, events/s"
              - region "Live viewer":
                - heading "Live viewer" [level=2]
                - form "What to view":
                  - combobox "Collections"
                  - group "Often used collections"
                  - textbox "Accounts (DIDs)"
                  - textbox "Words in the text"
                  - group "Kinds":
                    - checkbox "commit" [checked]
                    - checkbox "sync" [checked] [disabled]
                  - combobox "Spelling"
                  - combobox "Start"
                  - button "Start"
                  - button "Pause" [disabled]
                - status: Not started
                - region "The same subscription elsewhere":
                  - tablist "The same subscription elsewhere":
                    - tab "websocat" [selected]
                  - tabpanel "websocat"
              - region "Connect"
            - contentinfo:
              - navigation "Endpoints"
            """
        )

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("screen", [{}, PHONE], ids=["desktop", "phone"])
    async def test_axe_finds_nothing(
        self, screen: dict[str, Any], scheme: str, start: Start, upstream: Upstream
    ) -> None:
        """Contrast, names, roles, landmarks: with conditions, events, and one of them open."""
        service = await start(upstream_cursor=0)
        async with looking(service.port, **screen, color_scheme=scheme) as tab:
            await tab.start()
            await connected(tab)
            upstream.post("one", time="2024-01-01T00:00:00.000Z")
            upstream.publish(identity, account, lambda seq: commit(seq, [delete(f"{POST}/1")]))
            await expect(tab.rows).to_have_count(4)
            await expect(tab.page.get_by_role("banner").get_by_role("status")).to_have_text("not ready")
            await tab.page.get_by_text("Parameters of a subscription").click()
            await self.accessible(tab.page)
            await tab.rows.last.click()
            await self.accessible(tab.page)

    @staticmethod
    async def accessible(page: Page) -> None:
        found = await Axe().run(page)
        assert found.violations_count == 0, found.generate_report()

    async def test_dark_is_dark(self, service: Service) -> None:
        lightness = "[...getComputedStyle(document.body).backgroundColor.matchAll(/[0-9]+/g)].map(Number)"
        async with looking(service.port, color_scheme="dark") as tab:
            assert max(await tab.page.evaluate(lightness)) < 64
            await tab.page.emulate_media(color_scheme="light")
            assert min(await tab.page.evaluate(lightness)) > 192

    async def test_nothing_is_wider_than_a_phone(self, service: Service, upstream: Upstream) -> None:
        width = "document.documentElement.scrollWidth"
        async with looking(service.port, **PHONE) as tab:
            await tab.page.get_by_text("Parameters of a subscription").click()
            assert await tab.page.evaluate(width) == 360
            await tab.start(collections=POST)
            await connected(tab)
            upstream.post("x" * 300)
            await tab.rows.first.tap()
            assert await tab.page.evaluate(width) == 360
            dialog = tab.page.get_by_role("dialog")
            assert await dialog.evaluate("node => node.scrollWidth") <= 360

    async def test_without_scripts_it_says_where_everything_is(self, service: Service) -> None:
        async with looking(service.port, java_script_enabled=False) as tab:
            await expect(
                tab.page.get_by_text(f"ws://127.0.0.1:{service.port}/v1/subscribe").first
            ).to_be_visible()


class TestProcesses:
    """A server that has several, and one that has not."""

    @pytest.fixture
    async def several(self, relay: Relay, tmp_path: Path) -> AsyncIterator[Supervisor]:
        async with serving(relay, tmp_path, upstream_cursor=0) as server:
            yield server

    @staticmethod
    def card(tab: Tab) -> Locator:
        return tab.page.get_by_role("region", name="Processes", exact=True)

    async def test_each_is_shown_with_what_it_does(self, several: Supervisor, upstream: Upstream) -> None:
        async with looking(several.ports[0]) as tab:
            await tab.start()
            await connected(tab)
            upstream.post("one")
            card = self.card(tab)
            await expect(card.get_by_role("rowheader")).to_have_text(
                [*("ingest reads upstream", "edge-1 serves subscribers", "edge-2 serves subscribers")]
            )
            pids = [str(each.pid) for each in (several.ingest, *several.edges)]
            await expect(card.get_by_role("row").nth(1)).to_contain_text(re.compile(f"ready.*{pids[0]}$"))
            edges = card.get_by_role("row").filter(has_text="serves subscribers")
            subscribers = edges.get_by_role("cell").and_(tab.page.locator("td:nth-child(3)"))
            await expect(subscribers.filter(has_text=re.compile("^1$"))).to_have_count(1)
            await expect(tab.page.get_by_role("heading", name="All processes")).to_be_visible()

    async def test_one_that_was_replaced_is_shown_with_how_often(self, several: Supervisor) -> None:
        async with looking(several.ports[0], requests_fail=True) as tab:
            row = self.card(tab).get_by_role("row", name="edge-2")
            await expect(row.get_by_role("cell").nth(7)).to_have_text("0")
            await ended_by(several.edges[1], signal.SIGKILL)
            await expect(row.get_by_role("cell").nth(7)).to_have_text("1")
            await expect(row.get_by_role("cell").nth(0)).to_have_text("ready")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("screen", [{}, PHONE], ids=["desktop", "phone"])
    async def test_everybody_can_read_it(
        self, screen: dict[str, Any], scheme: str, several: Supervisor
    ) -> None:
        async with looking(several.ports[0], **screen, color_scheme=scheme) as tab:
            await expect(self.card(tab)).to_be_visible()
            await TestAccess.accessible(tab.page)
            assert await tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    async def test_there_is_no_table_of_a_single_process(self, tab: Tab) -> None:
        await expect(tab.page.get_by_role("heading", name="Process", exact=True)).to_be_visible()
        await expect(tab.page.get_by_text("since the start").first).to_be_visible()
        await expect(self.card(tab)).to_be_hidden()


class TestTokens:
    OPERATOR = "operator-0123456789"
    SUBSCRIBER = "subscriber-0123456789"

    @pytest.fixture
    async def service(self, start: Start, tmp_path: Path) -> Service:
        operators, subscribers = tmp_path / "operators", tmp_path / "subscribers"
        operators.write_text(f"olga:{self.OPERATOR}\n")
        subscribers.write_text(f"sam:{self.SUBSCRIBER}\n")
        return await start(upstream_cursor=0, operator_tokens=operators, subscriber_tokens=subscribers)

    @pytest.fixture
    async def tab(self, service: Service) -> AsyncIterator[Tab]:
        async with looking(service.port, requests_fail=True) as tab:
            yield tab

    @staticmethod
    async def use(tab: Tab, token: str) -> None:
        form = tab.page.get_by_role("form", name="Token")
        await form.get_by_label("Token", exact=True).fill(token)
        await form.get_by_role("button", name="Use").click()

    async def test_figures_need_that_of_an_operator(self, tab: Tab, upstream: Upstream) -> None:
        upstream.post("one")
        state = tab.page.get_by_role("banner").get_by_role("status")
        form = tab.page.get_by_role("form", name="Token")
        await expect(state).to_have_text("needs a token")
        await expect(form).to_contain_text("/status.json needs a token")
        await self.use(tab, self.SUBSCRIBER)
        await expect(form).to_contain_text("the token is unknown")
        await self.use(tab, self.OPERATOR)
        await expect(state).to_have_text("ready")
        await expect(form).to_be_hidden()
        await tab.page.reload()
        await expect(state).to_have_text("ready")
        assert not any(self.OPERATOR in url for url in tab.asked)

    async def test_the_viewer_goes_on_with_that_of_a_subscriber(self, tab: Tab, upstream: Upstream) -> None:
        form = tab.page.get_by_role("form", name="Token")
        await tab.start()
        await expect(form).to_contain_text("/subscribe needs a token")
        await expect(tab.state).to_have_text("Refused")
        await self.use(tab, self.SUBSCRIBER)
        await connected(tab)
        upstream.post("for sam")
        await expect(tab.rows.first).to_contain_text("for sam")
        assert self.SUBSCRIBER not in await tab.page.locator("#snippet").inner_text()

    async def test_the_form_is_within_reach_of_everybody(self, tab: Tab) -> None:
        await expect(tab.page.get_by_role("form", name="Token")).to_be_visible()
        found = await Axe().run(tab.page)
        assert found.response["violations"] == []
