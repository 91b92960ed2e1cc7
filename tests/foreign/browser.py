"""Debian's Chromium, driven by Playwright, and what it complains about."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, async_playwright
from tests.foreign.conftest import missing

# No sandbox: tests may run as root, in a container. The others keep it from calling home.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PATIENCE_MS = 30_000
# What Chromium writes when a request fails. A test that lets requests fail allows it.
FAILED_REQUEST = re.compile(r"Failed to load resource|WebSocket connection to .* failed")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run the browser, without a window."""
    path = shutil.which("chromium") or missing("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """A tab that looks at the page of a server, and keeps what the browser complains about."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.complaints: list[str] = []
        # URLs that it asked for. None may be of another site.
        self.asked: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _asked(self, request: Request) -> None:
        self.asked.append(request.url)

    def check(self, *, requests_fail: bool) -> None:
        """Assert that there was no complaint, and no request to another site."""
        unexpected = [text for text in self.complaints if not (requests_fail and FAILED_REQUEST.search(text))]
        assert unexpected == []
        assert [url for url in self.asked if not url.startswith(self.base)] == []

    # What a user does

    def button(self, name: str) -> Locator:
        """Return a button by its name."""
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def state(self) -> Locator:
        """Where the viewer stands."""
        return self.page.get_by_role("region", name="Live viewer").get_by_role("status").first

    @property
    def rows(self) -> Locator:
        """The events in the list, the newest first."""
        return self.page.get_by_role("list", name="Events").get_by_role("button")

    async def start(self, **fields: Any) -> None:
        """Fill in fields of the form by their labels, and start the viewer."""
        await self.ask(**fields)
        await self.page.get_by_role("button", name=re.compile("^(Start|Restart)$")).click()

    async def ask(self, **fields: Any) -> None:
        """Fill in fields of the form by their labels."""
        form = self.page.get_by_role("form", name="What to view")
        for name, value in fields.items():
            label = {"dids": "Accounts (DIDs)", "text": "Words in the text"}.get(name, name.capitalize())
            field = form.get_by_label(label, exact=True)
            if name in {"spelling", "start"}:
                await field.select_option(label=value)
            else:
                await field.fill(value)


@asynccontextmanager
async def looking(port: int, *, requests_fail: bool = False, **options: Any) -> AsyncIterator[Tab]:
    """Open the page of a server in a browser of its own. At the end, check that nothing was wrong.

    `options` are those of a context of Playwright, such as `color_scheme`.
    """
    async with chromium() as browser:
        context = await browser.new_context(**options)
        tab = Tab(await context.new_page(), f"http://127.0.0.1:{port}/")
        await tab.page.goto(tab.base)
        yield tab
        tab.check(requests_fail=requests_fail)
