"""A real browser for pages: Debian's Chromium, or playwright's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DEBIAN_CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def launched() -> Iterator[Any]:
    """A running browser; the test skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        own = Path(running.chromium.executable_path)
        executable = next((path for path in (DEBIAN_CHROMIUM, own) if path.exists()), None)
        if executable is None:
            pytest.skip("no Chromium: install Debian's, or run `playwright install chromium`")
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=executable, headless=True, args=arguments)
        yield browser
        browser.close()
