"""The contact sheet: what it shows, that nothing in it can inject, and that its script runs."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrec_batch.query.sheet import LONG_SIDE, Card, render_sheet

CLASSES = {"car": "#4363d8", "person": "#e6194B", "tree": "#3cb44b"}


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

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]

    def pictures(self) -> list[Image.Image]:
        return [opened(attrs["src"]) for attrs in self.all("img") if "class" not in attrs]

    def masks(self) -> list[Image.Image]:
        return [opened(attrs["src"]) for attrs in self.of_class("mask")]


def opened(uri: str | None) -> Image.Image:
    head, _, body = (uri or "").partition(",")
    assert re.fullmatch(r"data:image/(jpeg|png);base64", head)
    return Image.open(BytesIO(base64.b64decode(body, validate=True)))


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def picture(width: int = 80, height: int = 60, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """The left half red, the right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (250, 0, 0)
    pixels[:, width // 2 :] = (0, 0, 250)
    return encoded(Image.fromarray(pixels), kind, orientation)


def mask(width: int = 16, height: int = 12, labels: tuple[int, ...] = (0, 1, 2, 3)) -> bytes:
    """Palette PNG of upright stripes, one a label, left to right."""
    columns = np.repeat(np.array(labels, np.uint8), width // len(labels))
    image = Image.fromarray(np.tile(columns, (height, 1)))
    image.putpalette(bytes(range(48)))  # not the colours of the sheet
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def card(
    uri: str = "s3://bucket/a.jpg",
    data: bytes | None = None,
    *,
    label_mask: bytes | None = None,
    coverage: Mapping[str, float] | None = None,
    pearson: float | None = None,
    readable: bool = True,
) -> Card:
    return Card(
        uri,
        (data or picture()) if readable else None,
        label_mask or mask(),
        coverage if coverage is not None else {"tree": 0.25, "car": 0.125, "person": 0.0},
        pearson,
    )


def sheet(query: Card, *results: Card, caption: str = "ranked", notice: str | None = None) -> str:
    return render_sheet(query, results, classes=CLASSES, caption=caption, notice=notice)


def page(query: Card, *results: Card) -> Page:
    return Page(sheet(query, *results))


def test_query_comes_first_then_one_card_for_each_result_in_order() -> None:
    uris = [f"s3://bucket/{i}.jpg" for i in range(5)]
    shown = page(*(card(uri) for uri in uris))
    assert [attrs["class"] for attrs in shown.of_class("card")] == ["card query"] + 4 * ["card"]
    assert [attrs["title"] for attrs in shown.of_class("uri")] == uris
    headings = [text for text in shown.text("h2") if text.strip()]
    assert headings == ["Query", "Rank 1", "Rank 2", "Rank 3", "Rank 4"]


def test_a_sheet_without_results_says_so() -> None:
    assert "No image passed the filters" in sheet(card())


@pytest.mark.parametrize(
    ("pearson", "text"),
    [(0.98765, "0.988"), (-0.5, "-0.500"), (-0.0001, "0.000"), (None, "undefined")],
)
def test_pearson_has_three_decimals_or_is_undefined(pearson: float | None, text: str) -> None:
    shown = page(card(), card(pearson=pearson))
    assert [data for data in shown.text("b") if data.strip()] == [text]


def test_nan_counts_as_undefined() -> None:
    assert "undefined" in page(card(), card(pearson=float("nan"))).text("b")


def test_the_query_has_no_pearson() -> None:
    assert "Pearson" not in "".join(page(card()).text("p"))


def test_bars_follow_the_order_of_the_classes_and_show_only_these() -> None:
    shown = page(card(coverage={"tree": 0.25, "road": 0.5, "car": 0.12345}))
    labels = [data for data in shown.text("span") if data in {*CLASSES, "road"}]
    assert labels == ["car", "person", "tree"]
    assert [data for data in shown.text("span") if "%" in data] == ["12.3 %", "0.0 %", "25.0 %"]
    widths = [attrs["width"] for attrs in shown.all("rect", height="10")]
    assert widths == ["12.35", "0.00", "25.00"]


def test_alternative_texts_tell_rank_dominant_class_and_coverage() -> None:
    shown = page(card(), card(coverage={}))
    alts = [attrs["alt"] for attrs in shown.all("img") if "class" not in attrs]
    assert alts == [
        "Query: dominant class tree; coverage car 12.5%, person 0.0%, tree 25.0%",
        "Rank 1: no class present",
    ]
    assert all(attrs["alt"] == "" for attrs in shown.of_class("mask"))
    assert shown.all("html", lang="en")


def test_overlay_is_transparent_on_background_and_coloured_on_classes() -> None:
    overlay = page(card()).masks()[0].convert("RGBA")
    assert overlay.size == (80, 60)  # of the thumbnail, not of the mask
    stripes = np.asarray(overlay)[30, [10, 30, 50, 70]].tolist()
    assert stripes[0][3] == 0
    assert stripes[1:] == [
        [0x43, 0x63, 0xD8, 255],
        [0xE6, 0x19, 0x4B, 255],
        [0x3C, 0xB4, 0x4B, 255],
    ]
    assert len(np.unique(np.asarray(overlay).reshape(-1, 4), axis=0)) == 4  # no mixed colours


def test_labels_beyond_the_classes_are_transparent() -> None:
    overlay = page(card(label_mask=mask(labels=(0, 1, 9, 255)))).masks()[0].convert("RGBA")
    assert np.asarray(overlay)[0, [10, 30, 50, 70], 3].tolist() == [0, 255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    """Orientation 6: what is stored on the left belongs at the top."""
    data = picture(80, 40, kind, orientation=6)
    shown = page(card(data=data, label_mask=mask(8, 16, labels=(0, 1))))
    upright = np.asarray(shown.pictures()[0].convert("RGB")).astype(int)
    assert upright.shape == (80, 40, 3)
    assert upright[10, 20].argmax() == 0
    assert upright[70, 20].argmax() == 2
    assert shown.masks()[0].size == (40, 80)
    assert 0x0112 not in shown.pictures()[0].getexif()  # or a browser would turn it once more


def test_large_pictures_shrink_and_small_ones_stay() -> None:
    shown = page(card(data=picture(2000, 1000)), card(data=picture(40, 30)))
    assert [image.size for image in shown.pictures()] == [(LONG_SIDE, LONG_SIDE // 2), (40, 30)]
    assert [image.size for image in shown.masks()] == [(LONG_SIDE, LONG_SIDE // 2), (40, 30)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_pictures_of_every_mode_become_rgb_thumbnails(mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    wide = Image.fromarray(grey.astype(np.uint16) * 200)
    image = wide if mode == "I;16" else Image.fromarray(grey).convert(mode)
    assert image.mode == mode
    thumbnail = np.asarray(page(card(data=encoded(image, "PNG"))).pictures()[0].convert("L"))
    left, right = (thumbnail[:, part].mean() for part in (slice(0, 20), slice(44, 64)))
    assert right - left > 100


def test_transparent_parts_become_white() -> None:
    data = encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 0)), "PNG")
    assert page(card(data=data)).pictures()[0].getpixel((20, 15)) == (255, 255, 255)


def test_metadata_of_the_picture_stays_out_of_the_sheet() -> None:
    buffer = BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", comment="taken at home")
    thumbnail = page(card(data=buffer.getvalue())).pictures()[0]
    assert "comment" not in thumbnail.info


UNREADABLE = {
    "missing": None,
    "empty": b"",
    "text": b"<html>404</html>",
    "cut": picture(640, 480)[:2000],
    "cut png": picture(640, 480, "PNG")[:200],
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_picture_that_cannot_be_read_shows_a_placeholder_and_its_mask(data: bytes | None) -> None:
    shown = page(card(), Card("s3://bucket/b.jpg", data, mask(), {"car": 0.5}, 0.5))
    assert shown.text("span").count("picture not readable") == 1
    assert len(shown.pictures()) == 1
    assert [image.size for image in shown.masks()] == [(80, 60), (LONG_SIDE, LONG_SIDE * 3 // 4)]
    assert "50.0 %" in shown.text("span")


@pytest.mark.parametrize("side", [40, 100])  # over Pillow's limit once, where it warns, and twice
def test_a_decompression_bomb_shows_a_placeholder(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    text = sheet(card(data=picture(side, side)))
    monkeypatch.undo()
    assert Page(text).text("span").count("picture not readable") == 1
    assert len(Page(text).masks()) == 1


@pytest.mark.parametrize("data", [b"no png", picture()], ids=["broken", "no labels"])
def test_a_mask_that_cannot_be_read_is_left_out(data: bytes) -> None:
    shown = page(card(label_mask=data), card(label_mask=data, readable=False))
    assert shown.masks() == []
    assert len(shown.pictures()) == 1
    said = [text for text in shown.text("span") if "readable" in text]
    assert said == ["mask not readable", "picture and mask not readable"]


@pytest.mark.parametrize(
    "colour", ["red", "#fff", "#12345g", "#123456;", "#123456\n", "}</style><script>"]
)
def test_a_colour_not_of_the_form_rrggbb_is_an_error(colour: str) -> None:
    with pytest.raises(ValueError, match="colour of class 'car'"):
        render_sheet(card(), [], classes={"car": colour}, caption="")


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\n{{ 7 * 7 }}</title>"


def test_hostile_text_stays_text() -> None:
    query = card("s3://" + EVIL, coverage={EVIL: 0.5})
    text = render_sheet(query, [query], classes={EVIL: "#123456"}, caption=EVIL, notice=EVIL)
    shown = Page(text)
    assert len(shown.all("script")) == 1
    assert shown.all("script") == [{}]
    assert len(shown.all("img")) == 4
    assert not [key for _, attrs in shown.elements for key in attrs if key.startswith("on")]
    assert not [attrs for _, attrs in shown.elements if "style" in attrs]
    assert [attrs["title"] for attrs in shown.of_class("uri")] == 2 * ["s3://" + EVIL]
    assert EVIL in shown.text("span")
    assert EVIL in shown.text("p")
    assert "49" not in "".join(shown.text("p"))


def test_a_file_name_that_is_no_utf8_can_be_written() -> None:
    assert r"/data/\udcff.jpg" in sheet(card("/data/\udcff.jpg")).encode().decode()


def test_policy_allows_only_this_style_and_this_script() -> None:
    shown = page(card(), card())
    policies = shown.all("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = dict(part.strip().split(" ", 1) for part in str(policies[0]["content"]).split(";"))

    def source(tag: str) -> str:
        text = "".join(shown.text(tag)[:1])
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": source("style"),
        "script-src": source("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    links = {tag for tag, attrs in shown.elements if "href" in attrs or "src" in attrs}
    assert links == {"img", "link"}
    assert all(attrs["href"] == "data:," for attrs in shown.all("link"))


def test_without_a_script_masks_show_and_the_control_for_all_does_not() -> None:
    shown = page(card(), card())
    assert all(attrs["aria-pressed"] == "true" for attrs in shown.of_class("shot"))
    assert "hidden" in shown.all("button", id="all")[0]


def test_a_notice_shows_only_when_given() -> None:
    assert not page(card()).of_class("notice")
    assert "weights are untrained" in Page(sheet(card(), notice="weights are untrained")).text("p")


CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--force-prefers-reduced-motion", "--enable-logging=stderr"),
    *("--virtual-time-budget=2000", "--dump-dom"),
]

PROBE = """<!doctype html><iframe id="frame" width="1200" height="900" srcdoc="{sheet}"></iframe>
<script>
const frame = document.getElementById("frame");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, seen = [];
  const shots = [...page.querySelectorAll(".shot")];
  const note = (step) => seen.push([step,
    shots.map((shot) => shot.getAttribute("aria-pressed")).join(" "),
    shots.map((shot) => getComputedStyle(shot.querySelector(".mask")).opacity).join(" "),
    page.getElementById("all").innerText.replace(/\\s+/g, " ")]);
  const press = (key, more) => page.dispatchEvent(new KeyboardEvent("keydown", {{key, ...more}}));
  note("start");
  press("m"); note("m");
  press("m"); note("m again");
  press("m", {{ctrlKey: true}}); press("n"); note("other keys");
  shots[1].click(); note("click on one");
  page.getElementById("all").click(); note("button");
  seen.push(["decoded", ...[...page.images].map((image) => image.naturalWidth)]);
  const evil = page.createElement("script");
  evil.textContent = "document.title = 'injected'";
  page.body.append(evil);
  seen.push(["title", page.title]);
  document.body.dataset.seen = JSON.stringify(seen);
}});
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_script_toggles_masks_under_its_own_policy(tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    text = sheet(card(), card(), caption="all images")
    probe.write_text(PROBE.format(sheet=html.escape(text)), encoding="utf-8")
    command = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", probe.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    body = next(attrs for attrs in Page(run.stdout).all("body"))
    assert json.loads(str(body["data-seen"])) == [
        ["start", "true true", "0.55 0.55", "Hide masks M"],
        ["m", "false false", "0 0", "Show masks M"],
        ["m again", "true true", "0.55 0.55", "Hide masks M"],
        ["other keys", "true true", "0.55 0.55", "Hide masks M"],
        ["click on one", "true false", "0.55 0", "Hide masks M"],
        ["button", "false false", "0 0", "Show masks M"],
        ["decoded", 80, 80, 80, 80],
        ["title", "Contact sheet: all images"],
    ]
    # The browser itself reports one refusal, that of the script the probe tried to add.
    complaints = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert len(complaints) == 1
    assert "Content Security Policy" in complaints[0]
