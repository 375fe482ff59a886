"""A real browser for tests of pages; tests that need it are skipped where there is none, with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 480)
SCHEMES = ("light", "dark")

# Everything that reaches out of the page to the right, or out of a box that would have to be scrolled sideways.
CLIPPED = """() => {
  const root = document.documentElement, width = root.clientWidth, found = [];
  if (root.scrollWidth > width) found.push(`page: ${root.scrollWidth} > ${width}`);
  for (const element of document.querySelectorAll(SELECTOR)) {
    if (!element.checkVisibility()) continue;
    const name = `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
    if (getComputedStyle(element).display !== "inline" && element.scrollWidth > element.clientWidth + 1)
      found.push(`${name}: ${element.scrollWidth} > ${element.clientWidth}`);
    const right = element.getBoundingClientRect().right;
    if (right > width + 1) found.push(`${name}: ends at ${right}`);
  }
  return found;
}"""

# Luminance (0 to 1) of what is behind the text, and of the text.
LIGHT = """() => {
  const light = (name) => {
    const parts = getComputedStyle(document.body)[name].match(/[0-9.]+/g).map(Number);
    return (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]) / 255;
  };
  return [light("backgroundColor"), light("color")];
}"""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a headless Chromium: Playwright's own, or that of the system."""
    api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by Playwright (extra `docs`)")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        program = str(own) if own.exists() else next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            pytest.skip("no Chromium: `playwright install chromium`, or Debian's package `chromium`")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def clipped(page: Page, selector: str = "table, th, td, pre, svg, img, figcaption, div") -> list[str]:
    """Return what is cut off at the right, or could only be reached by scrolling sideways."""
    found: list[str] = page.evaluate(CLIPPED.replace("SELECTOR", repr(selector)))
    return found
