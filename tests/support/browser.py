"""Pages in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_browser = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="apt install chromium chromium-driver"
)


@contextmanager
def opened(page: Path) -> Iterator[Any]:
    """A page in Chromium: selenium's driver. At the end the browser must have had no complaint."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options)
    try:
        driver.get(page.as_uri())
        yield driver
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
