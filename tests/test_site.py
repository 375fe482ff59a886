"""The built site as a browser shows it; skipped where it was not built (`make docs`) or there is no browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import LIGHT, SCHEMES, WIDTHS, clipped, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SITE = Path(__file__).parents[1] / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if path.name != "404.html")

pytestmark = [
    pytest.mark.skipif(not PAGES, reason="the site is not built: `make docs`"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES or ["none"])
def test_nothing_is_cut_off_and_nothing_is_fetched(page: str, browser: Browser) -> None:
    asked: list[str] = []
    for scheme in SCHEMES:
        tab = browser.new_page(viewport={"width": WIDTHS[0], "height": 900}, color_scheme=scheme)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((SITE / page).as_uri())
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            parts = "table, th, td, pre, code, img, h1, h2, h3, p, li"
            content = ", ".join(f".md-content {part.strip()}" for part in parts.split(","))
            assert clipped(tab, content) == [], (scheme, width)
        behind, text = tab.evaluate(LIGHT)
        assert (behind > 0.9 and text < 0.4) if scheme == "light" else (behind < 0.25 and text > 0.6)
        tab.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert any(url.endswith(".css") for url in asked)
