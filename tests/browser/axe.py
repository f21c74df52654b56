"""axe-core, which finds what makes a page hard to use for people with disabilities."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.support.chromium import Page

HERE = Path(__file__).parent
AXE = HERE / "node_modules/axe-core/axe.min.js"
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
RUN = """
    axe.run().then((found) => found.violations.map((one) =>
        `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 200)).join(' | ')}`))
"""


@cache
def axe_source() -> str:
    """Return the script. Skips the test where it cannot be installed."""
    if not AXE.exists():
        if shutil.which("npm") is None:
            pytest.skip("needs npm, for axe-core")
        done = subprocess.run(["npm", "ci", "--silent"], cwd=HERE, capture_output=True, timeout=100)
        if done.returncode != 0:
            pytest.skip("npm cannot install axe-core")
    return AXE.read_text()


async def show_as(page: Page, width: int, scheme: str) -> None:
    """Show a page in a window of a width, in light or dark colours."""
    await page.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    await page.devtools("Emulation.setEmulatedMedia", features=features)


async def assert_all_can_use(page: Page) -> None:
    """Check a page on a phone and on a large screen, in light and dark colours: axe-core finds
    nothing, and nothing is wider than the window."""
    await page.value(axe_source())
    for width in WIDTHS:
        for scheme in SCHEMES:
            await show_as(page, width, scheme)
            assert await page.value("document.documentElement.scrollWidth") <= width
            found = await page.value(RUN)
            assert found == [], f"{width} {scheme}: {json.dumps(found, indent=1)}"
