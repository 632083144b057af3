"""Chromium for the tests of the pages: `make browser` runs this file and installs it where it can.

As root where there is apt-get: Debian's package. Elsewhere: Playwright's own download, into the
user's cache. Where neither works those tests are skipped, and this says so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
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


if __name__ == "__main__":
    if not installed():
        install()
    print(f"browser: {installed() or 'none, so the tests of the pages in a browser are skipped'}")
