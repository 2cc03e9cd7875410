"""Pages in a parser and in Chromium, and their accessibility by axe-core."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


class Page(HTMLParser):
    """The elements of a page in order, as (tag, attributes), and the text under each tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    def all(self, tag: str, **expected: str) -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in expected.items())
        ]

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--force-prefers-reduced-motion", "--enable-logging=stderr"),
    *("--virtual-time-budget=10000", "--dump-dom"),
]


def seen_in_browser(text: str, probe: str, folder: Path) -> tuple[Any, list[str]]:
    """Return the result of a probe of a page in Chromium, and the browser's errors."""
    return seen_by(probe.format(sheet=html.escape(text)), folder)


def seen_by(probe: str, folder: Path) -> tuple[Any, list[str]]:
    """Return the JSON in the attribute data-seen of the body of a page of ours."""
    file = folder / "probe.html"
    file.write_text(probe, encoding="utf-8")
    run = chromium(file, folder)
    body = next(attrs for attrs in Page(run.stdout).all("body"))
    return json.loads(str(body["data-seen"])), complaints_of(run)


def chromium(file: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a file in Chromium and print its elements; `folder` stores a new profile."""
    command = [*CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


def complaints_of(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


FRAME = (
    '<iframe width="{width}" height="900" style="color-scheme: {scheme}" srcdoc="{page}"></iframe>'
)
VIEWS = [("light", 1200), ("dark", 390)]

AXE = """<!doctype html><body>{frames}
<script>
addEventListener("load", async () => {{
  const seen = [];
  for (const frame of document.querySelectorAll("iframe")) {{
    const inside = frame.contentWindow;
    const found = await inside.axe.run(inside.document);
    seen.push({{
      scheme: inside.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
      width: Number(frame.width),
      passed: found.passes.map((rule) => rule.id),
      violations: found.violations.flatMap((rule) => rule.nodes.map(
        (node) => `${{rule.id}}: ${{node.html}} ${{node.failureSummary}}`)),
      wide: inside.document.documentElement.scrollWidth,
    }});
  }}
  document.body.dataset.seen = JSON.stringify(seen);
}});
</script>"""


def accessible(page: Path) -> list[str]:
    """Return axe-core's findings for a page, and an overflow of its width.

    The page is shown on a wide light screen and on a dark phone.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(str(files("axe_core_python") / "axe.min.js"), folder)
        text = page.read_text(encoding="utf-8")
        text = re.sub("<meta http-equiv=.*?>", '<script src="axe.min.js"></script>', text, count=1)
        frames = [FRAME.format(page=html.escape(text), scheme=s, width=w) for s, w in VIEWS]
        seen, complaints = seen_by(AXE.format(frames="".join(frames)), folder)
    assert [(view["scheme"], view["width"]) for view in seen] == VIEWS
    assert all({"color-contrast", "document-title", "list"} <= {*view["passed"]} for view in seen)
    wide = [
        f"{view['wide']} wide at {view['width']}" for view in seen if view["wide"] > view["width"]
    ]
    return [v for view in seen for v in view["violations"]] + wide + complaints
