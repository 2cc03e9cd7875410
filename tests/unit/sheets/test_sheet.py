"""Tests of the contact sheet as HTML: content, escaping, script and policy."""

import base64
import hashlib
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrec_batch.sheets.card import Card
from segrec_batch.sheets.html import LONG_SIDE
from tests.support.browser import Page, needs_chromium, seen_in_browser
from tests.support.builders import png_by_hand
from tests.support.cards import CLASSES, card, encoded, image, mask, page, sheet

ROOT = Path(__file__).parents[3]


def test_page_has_query_then_results_in_order() -> None:
    uris = [f"s3://bucket/{i}.jpg" for i in range(5)]
    html = page(*(card(uri) for uri in uris))
    assert [attrs["class"] for attrs in html.of_class("card")] == ["card query"] + 4 * ["card"]
    assert [attrs["title"] for attrs in html.of_class("uri")] == uris
    headings = [text for text in html.text("h2") if text.strip()]
    assert headings == ["Query", "Rank 1", "Rank 2", "Rank 3", "Rank 4"]


def test_a_sheet_without_results_says_so() -> None:
    assert "No image passed the filters" in sheet(card())


@pytest.mark.parametrize(
    ("pearson", "text"),
    [(0.98765, "0.988"), (-0.5, "-0.500"), (-0.0001, "0.000"), (None, "undefined")],
)
def test_pearson_has_three_decimals_or_is_undefined(pearson: float | None, text: str) -> None:
    html = page(card(), card(score=pearson))
    assert [data for data in html.text("b") if data.strip()] == [text]


def test_nan_counts_as_undefined() -> None:
    assert "undefined" in page(card(), card(score=float("nan"))).text("b")


def test_the_query_has_no_scores() -> None:
    assert page(card(score=1.0, mask_iou=1.0)).of_class("scores") == []


def test_mask_iou_stands_beside_pearson_where_it_is_known() -> None:
    html = page(card(), card(score=0.5, mask_iou=0.25), card(score=0.5))
    assert [text for text in html.text("b") if text.strip()] == ["0.500", "0.250", "0.500"]
    assert [text.strip() for text in html.text("li") if text.strip()].count("IoU") == 1


def test_bars_show_the_classes_in_order() -> None:
    html = page(card(coverage={"tree": 0.25, "road": 0.5, "car": 0.12345}))
    labels = [data for data in html.text("span") if data in {*CLASSES, "road"}]
    assert labels == ["car", "person", "tree"]
    assert [data for data in html.text("span") if "%" in data] == ["12.3 %", "0.0 %", "25.0 %"]
    widths = [attrs["width"] for attrs in html.all("rect", height="10")]
    assert widths == ["12.35", "0.00", "25.00"]


def test_class_of_filters_comes_first_with_window() -> None:
    html = Page(sheet(card(), card(), class_name="tree", window=(0.29, 0.96)))
    names = [data for data in html.text("span") if data in CLASSES]
    assert names == 2 * ["tree", "car", "person"]
    fills = [str(attrs["class"]) for attrs in html.all("rect", height="10")]
    assert fills == 2 * ["fill-3", "fill-1", "fill-2"]  # colours stay those of the labels
    assert len(html.of_class("asked")) == 3  # in the legend and on two cards
    bands = [attrs["d"] for attrs in html.of_class("window")]
    assert bands[1:] == 2 * ["M29.00 0H96.00V10H29.00z"]
    assert "filter: 29 to 96 %" in html.text("path")


@pytest.mark.parametrize(
    ("class_name", "window", "emphasised"),
    [(None, (0.0, 1.0), 0), ("car", (0.0, 1.0), 2), ("background", (0.2, 0.5), 0)],
)
def test_a_window_is_drawn_only_for_a_class_with_a_colour(
    class_name: str | None, window: tuple[float, float], emphasised: int
) -> None:
    html = Page(sheet(card(), class_name=class_name, window=window))
    assert len(html.of_class("asked")) == emphasised
    assert html.of_class("window") == []
    assert [data for data in html.text("span") if data in CLASSES] == list(CLASSES)


def test_alt_texts_have_rank_dominant_class_and_coverage() -> None:
    html = page(card(), card(coverage={}))
    alts = [attrs["alt"] for attrs in html.all("img") if "class" not in attrs]
    assert alts == [
        "Query: dominant class tree; coverage car 12.5%, person 0.0%, tree 25.0%",
        "Rank 1: no class present",
    ]
    assert all(attrs["alt"] == "" for attrs in html.of_class("mask"))
    assert html.all("html", lang="en")


def test_overlay_is_transparent_on_background_only() -> None:
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
    data = image(80, 40, kind, orientation=6)
    html = page(card(data=data, label_mask=mask(8, 16, labels=(0, 1))))
    upright = np.asarray(html.images()[0].convert("RGB")).astype(int)
    assert upright.shape == (80, 40, 3)
    assert upright[10, 20].argmax() == 0
    assert upright[70, 20].argmax() == 2
    assert html.masks()[0].size == (40, 80)
    assert 0x0112 not in html.images()[0].getexif()  # or a browser would turn it once more


def test_large_images_shrink_and_small_ones_stay() -> None:
    html = page(card(data=image(2000, 1000)), card(data=image(40, 30)))
    assert [image.size for image in html.images()] == [(LONG_SIDE, LONG_SIDE // 2), (40, 30)]
    assert [image.size for image in html.masks()] == [(LONG_SIDE, LONG_SIDE // 2), (40, 30)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_images_of_every_mode_become_rgb_thumbnails(mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    wide = Image.fromarray(grey.astype(np.uint16) * 200)
    image = wide if mode == "I;16" else Image.fromarray(grey).convert(mode)
    assert image.mode == mode
    thumbnail = np.asarray(page(card(data=encoded(image, "PNG"))).images()[0].convert("L"))
    left, right = (thumbnail[:, part].mean() for part in (slice(0, 20), slice(44, 64)))
    assert right - left > 100


def test_transparent_parts_become_white() -> None:
    data = encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 0)), "PNG")
    assert page(card(data=data)).images()[0].getpixel((20, 15)) == (255, 255, 255)


def test_metadata_of_the_image_stays_out_of_the_sheet() -> None:
    buffer = BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", comment="taken at home")
    thumbnail = page(card(data=buffer.getvalue())).images()[0]
    assert "comment" not in thumbnail.info


UNREADABLE = {
    "missing": None,
    "empty": b"",
    "text": b"<html>404</html>",
    "cut": image(640, 480)[:2000],
    "cut png": image(640, 480, "PNG")[:200],
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_image_shows_placeholder_and_mask(data: bytes | None) -> None:
    html = page(card(), Card("s3://bucket/b.jpg", data, mask(), {"car": 0.5}, 0.5))
    assert html.text("span").count("image not readable") == 1
    assert len(html.images()) == 1
    assert [image.size for image in html.masks()] == [(80, 60), (LONG_SIDE, LONG_SIDE * 3 // 4)]
    assert "50.0 %" in html.text("span")


def test_a_decompression_bomb_shows_a_placeholder() -> None:
    html = page(card(data=png_by_hand(20_000, 9_000)))
    assert html.text("span").count("image not readable") == 1
    assert len(html.masks()) == 1


def test_formats_that_no_index_takes_are_not_opened() -> None:
    """Pillow starts a PostScript interpreter for some of them."""
    html = page(card(data=encoded(Image.new("RGB", (40, 30)), "EPS")))
    assert html.text("span").count("image not readable") == 1


def test_the_mask_of_a_very_long_unreadable_image_is_shown() -> None:
    assert page(card(label_mask=mask(1024, 1), readable=False)).masks()[0].size == (LONG_SIDE, 1)


@pytest.mark.parametrize("data", [b"no png", image()], ids=["broken", "no labels"])
def test_a_mask_that_cannot_be_read_is_left_out(data: bytes) -> None:
    html = page(card(label_mask=data), card(label_mask=data, readable=False))
    assert html.masks() == []
    assert len(html.images()) == 1
    message = [text for text in html.text("span") if "readable" in text]
    assert message == ["mask not readable", "image and mask not readable"]


@pytest.mark.parametrize(
    "colour", ["red", "#fff", "#12345g", "#123456;", "#123456\n", "}</style><script>"]
)
def test_a_colour_not_of_the_form_rrggbb_is_an_error(colour: str) -> None:
    with pytest.raises(ValueError, match="colour of class 'car'"):
        sheet(card(), classes={"car": colour})


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\n{{ 7 * 7 }}</title>"


def test_hostile_text_stays_text() -> None:
    query = card("s3://" + EVIL, coverage={EVIL: 0.5})
    text = sheet(query, query, classes={EVIL: "#123456"}, caption=EVIL, notice=EVIL)
    html = Page(text)
    assert len(html.all("script")) == 1
    assert html.all("script") == [{}]
    assert len(html.all("img")) == 4
    assert not [key for _, attrs in html.elements for key in attrs if key.startswith("on")]
    assert not [attrs for _, attrs in html.elements if "style" in attrs]
    assert [attrs["title"] for attrs in html.of_class("uri")] == 2 * ["s3://" + EVIL]
    assert EVIL in html.text("span")
    assert EVIL in html.text("p")
    assert "49" not in "".join(html.text("p"))


def test_a_file_name_that_is_no_utf8_can_be_written() -> None:
    assert r"/data/\udcff.jpg" in sheet(card("/data/\udcff.jpg")).encode().decode()


def test_policy_allows_only_this_style_and_this_script() -> None:
    html = page(card(), card())
    policies = html.all("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = dict(part.strip().split(" ", 1) for part in str(policies[0]["content"]).split(";"))

    def source(tag: str) -> str:
        text = "".join(html.text(tag)[:1])
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": source("style"),
        "script-src": source("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    links = {tag for tag, attrs in html.elements if "href" in attrs or "src" in attrs}
    assert links == {"img", "link"}
    assert all(attrs["href"] == "data:," for attrs in html.all("link"))


def test_page_without_script_shows_masks_and_no_button() -> None:
    html = page(card(), card())
    assert all(attrs["aria-pressed"] == "true" for attrs in html.of_class("shot"))
    assert "hidden" in html.all("button", id="all")[0]


def test_a_notice_shows_only_when_given() -> None:
    assert not page(card()).of_class("notice")
    assert "weights are untrained" in Page(sheet(card(), notice="weights are untrained")).text("p")


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        *(("text", ground) for ground in ("page", "card", "well")),
        *(("soft", ground) for ground in ("page", "card")),
        *(("accent", "card"), ("notice-text", "notice")),
    ],
)
def test_text_has_enough_contrast(text: str, ground: str, scheme: int) -> None:
    style = page(card()).text("style")[0]
    palette = dict(
        re.findall(r"--([\w-]+): (#\w{6});", re.findall(r":root {(.*?)}", style, re.S)[scheme])
    )
    low, high = sorted((luminance(palette[text]), luminance(palette[ground])))
    assert (high + 0.05) / (low + 0.05) >= 4.5


MEMORY = """
import resource
from PIL import Image
from segrec_batch.sheets.html import render_html
from segrec_batch.sheets.png import render_png
from tests.support.cards import card, encoded, make_sheet
cards = [card(data=encoded(Image.new("RGB", (4000, 3000)), "PNG"))] * 8
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = most()
for render in (render_html, render_png):
    render(make_sheet(*cards))
print(most() - before)
"""


def test_large_images_are_decoded_one_at_a_time() -> None:
    """Eight of 12 megapixels take 288 MB when all are held."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(run.stdout) < 150


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


@needs_chromium
def test_script_toggles_masks_under_policy(tmp_path: Path) -> None:
    text = sheet(card(), card(), caption="all images")
    seen, complaints = seen_in_browser(text, PROBE, tmp_path)
    assert seen == [
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
    assert len(complaints) == 1
    assert "Content Security Policy" in complaints[0]


MANY = """<!doctype html><iframe id="frame" width="1200" height="900" srcdoc="{sheet}"></iframe>
<script>
const frame = document.getElementById("frame");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, seen = {{}};
  const hidden = () => page.querySelectorAll('.shot[aria-pressed="false"]').length;
  seen.elements = page.querySelectorAll("*").length;
  seen.drawn = [...page.querySelectorAll(".facts")]
    .filter((part) => part.checkVisibility({{contentVisibilityAuto: true}})).length;
  seen.lazy = [...page.images].every((i) => i.loading === "lazy" && i.decoding === "async");
  const press = () => page.dispatchEvent(new KeyboardEvent("keydown", {{key: "m"}}));
  press(); seen.hidden = hidden();
  press(); seen.shown = hidden();
  const last = [...page.querySelectorAll(".shot")].at(-1);
  last.focus(); seen.focus = page.activeElement === last;
  document.body.dataset.seen = JSON.stringify(seen);
}});
</script>"""


@needs_chromium
def test_two_hundred_results_stay_fluid(tmp_path: Path) -> None:
    results = [card(data=image(600, 450, "PNG"), label_mask=mask(600, 448))] * 200
    text = sheet(card(), *results)
    assert len(text) / 200 < 20_000  # flat images: nearly all of it is the page's own
    seen, complaints = seen_in_browser(text, MANY, tmp_path)
    assert complaints == []
    assert seen["elements"] < 60 + 201 * 40
    assert seen["drawn"] < 40  # the others are neither laid out nor painted
    assert seen["lazy"]
    assert (seen["hidden"], seen["shown"]) == (201, 0)
    assert seen["focus"]
