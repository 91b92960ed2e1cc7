"""Take the pictures of the page in `docs/images/`: `python scripts/take_screenshots.py [URL]`.

The server at the URL should have run for an hour, with subscribers, so that there is something to see:

    jetstream simulate --rate 300
    jetstream serve --upstream relay=ws://127.0.0.1:7777 --data-dir /tmp/jetstream
    jetstream bench --subscribers 40 --seconds 3600

It uses Chromium, as `tests/foreign/test_page.py` does, and prefers the font Inter (Debian: fonts-inter).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Final

from playwright.async_api import Browser, Page, async_playwright

IMAGES: Final = Path(__file__).resolve().parents[1] / "docs" / "images"
URL: Final = "http://127.0.0.1:6008/"
BYTES_MAX: Final = 200_000


async def main(url: str = URL) -> None:
    """Take all pictures."""
    path = shutil.which("chromium")
    if path is None:
        sys.exit("take_screenshots: needs Chromium (Debian: apt install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        await _figures(browser, url)
        await _viewer(browser, url)
        await _phone(browser, url)
        await browser.close()


async def _figures(browser: Browser, url: str) -> None:
    page = await browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
    await page.goto(url)
    await page.get_by_text("since the start", exact=False).first.wait_for()
    await _save(page, "page.png")


async def _viewer(browser: Browser, url: str) -> None:
    page = await browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="dark")
    await page.goto(url)
    await page.get_by_role("button", name="posts").click()
    await page.get_by_role("button", name="Start").click()
    rows = page.get_by_role("list", name="Events").get_by_role("button")
    await rows.nth(30).wait_for()
    await page.get_by_text("events it selects").wait_for()
    await page.get_by_role("heading", name="Live viewer").evaluate("node => node.scrollIntoView()")
    await rows.nth(4).click()
    await _save(page, "viewer.png")


async def _phone(browser: Browser, url: str) -> None:
    page = await browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    await page.goto(url)
    await page.get_by_text("since the start", exact=False).first.wait_for()
    await _save(page, "phone.png")


async def _save(page: Page, name: str) -> None:
    """Take one picture, of what the window shows. Exits if it is too large for a repository."""
    await page.wait_for_timeout(500)  # the figures have been drawn once, and fonts are there
    IMAGES.mkdir(exist_ok=True)
    data = await page.screenshot(path=IMAGES / name)
    if len(data) > BYTES_MAX:
        sys.exit(f"take_screenshots: {name} has {len(data)} bytes, over {BYTES_MAX}")
    print(f"{name}: {len(data)} bytes")  # noqa: T201 - what the user of a script reads


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
