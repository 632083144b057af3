"""Chromium for the tests of the pages: `make browser` runs this file and installs it where it can.

As root where there is apt-get: Debian's package. Elsewhere: Playwright's own download, into the
user's cache. Where neither works those tests are skipped, and this says so.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000  # a busy machine may be slow; what fails still fails
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
APT = "apt-get install -y -qq --no-install-recommends chromium"


def installed() -> str | None:
    """Where it is."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def install() -> None:
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root and shutil.which("apt-get"):
        tried = ["sh", "-c", f"{APT} || (apt-get update -qq && {APT})"]
    else:
        tried = [sys.executable, "-m", "playwright", "install", "chromium"]
    print(f"no Chromium yet; trying: {tried[-1] if is_root else ' '.join(tried[1:])}", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(tried, env=quiet, stdout=subprocess.DEVNULL, check=False)


@contextmanager
def launched() -> Iterator[Browser]:
    """A running browser. Skips the tests that ask for it where there is none."""
    if (path := installed()) is None:
        pytest.skip("no Chromium: `make browser` installs it where it can")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        running = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield running
        running.close()


if __name__ == "__main__":
    if not installed():
        install()
    print(f"browser: {installed() or 'none, so the tests of the pages in a browser are skipped'}")
