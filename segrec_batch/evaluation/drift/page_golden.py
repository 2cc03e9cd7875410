"""What the page of a drift report shows of the golden images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from segrec_batch.evaluation.drift.figures import SAME_CONTENT, classes_of
from segrec_batch.evaluation.drift.overlap import REGION, WHOLE
from segrec_batch.evaluation.drift.told import Found, Row, Told
from segrec_batch.evaluation.items import Plot, Table, Text
from segrec_batch.evaluation.plots import step_plot
from segrec_batch.evaluation.statistics import Key
from segrec_batch.index.schema import coverage_column

WORST = 10


def features(told: Told, found: Found) -> Iterator[Text | Table]:
    """How far features and coverages moved."""
    if not len(told.golden):
        yield Text("No image is in both snapshots, so there are no golden images.")
        return
    figures = {
        "1 − Pearson of old and new feature": Key("drift_features"),
        "share with another feature": Key("features_changed"),
        "… of those with the same content": Key("features_changed", setting=SAME_CONTENT),
    } | {
        f"|Δσ| of {cls}": Key("coverage_change", cls=cls) for cls in classes_of(told.counts)
    }  # fmt: skip
    rows: list[Row] = [[words, found[key], str(found[key].units)] for words, key in figures.items()]
    yield Table("Means over golden images", ("", "mean", "images"), rows, told.split)
    changes = [c for c in _changes(told) if c.distance or c.change]
    if not changes:
        yield Text("No golden image changed its feature or its coverage.")
        return
    worst = sorted(changes, key=lambda c: (-(c.distance or 0), -c.change, c.uri))[:WORST]
    cells = [
        [
            c.uri, "absent" if c.distance is None else f"{c.distance:.4f}",
            f"{c.change:.3f} {c.cls}", "changed" if c.new_content else "the same",
        ]
        for c in worst
    ]  # fmt: skip
    header = ("image", "1 − Pearson", "largest |Δσ|", "content")
    yield Table(f"The {len(cells)} that changed most", header, cells, told.split)


@dataclass(frozen=True)
class _Change:
    uri: str
    distance: float | None
    change: float
    cls: str
    new_content: bool


def _changes(told: Told) -> list[_Change]:
    classes = classes_of(told.counts)
    found = []
    for row in told.golden.to_pylist():
        shares = {cls: abs(row[coverage_column(cls)]) for cls in classes}
        cls = max(shares, key=lambda c: shares[c], default="")
        change = shares.get(cls, 0.0)
        found.append(_Change(row["uri"], row["distance"], change, cls, row["new_content"]))
    return found


def recommended(told: Told, found: Found) -> Iterator[Text | Table | Plot]:
    """How much of the recommendations stayed."""
    overlaps = {k: e for k, e in found.items() if k.name.endswith("_overlap") and k.k}
    if not overlaps:
        yield Text("Without golden images nothing was asked.")
        return
    k = max(key.k for key in overlaps)
    yield Text(
        f"For each golden image the {k} most similar were asked of both snapshots. Overlap is the "
        "share of them that stayed, average overlap its mean over the first 1, 2, … places (Fagin "
        "et al. 2003), so that early places weigh more."
    )
    rows: list[Row] = [
        [_asked(key), estimate, overlaps[_average(key)], str(estimate.units)]
        for key, estimate in overlaps.items()
        if key.name == "topk_overlap"
    ]
    header = ("compared", f"overlap@{k}", f"average overlap@{k}", "queries")
    yield Table("Overlap of recommendations", header, rows, told.split)
    yield from _least(told, k)


def _asked(key: Key) -> str:
    return f"{key.setting}: {key.cls}" if key.cls else key.setting


def _average(key: Key) -> Key:
    return replace(key, name="average_overlap")


def _least(told: Told, k: int) -> Iterator[Table | Plot]:
    """How the overlap is spread over queries, and those of which least stayed."""
    rows = told.counts.filter(pc.equal(told.counts["name"], "topk_overlap")).to_pylist()
    by_image: dict[str, dict[str, float | None]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], {})[row["setting"]] = row["value"]
    uris = dict(zip(*(told.golden[c].to_pylist() for c in ("image_id", "uri")), strict=True))
    edges = np.linspace(0, 1 + 1 / k, k + 2) - 0.5 / k
    shares = {}
    for setting in (WHOLE, REGION):
        values = [v for of in by_image.values() if (v := of.get(setting)) is not None]
        if values:
            shares[setting] = np.histogram(values, edges)[0] / len(values)
    about = "; ".join(f"{s}: {share[-1]:.0%} of queries kept all" for s, share in shares.items())
    plot = step_plot(shares, edges, f"overlap@{k}", "share of queries")
    yield Plot("Queries by overlap", plot, f"Histograms of overlap. {about}.", told.split)
    less = [i for i, of in by_image.items() if any(_known(v) < 1 for v in of.values())]
    if not less:
        return
    order = sorted(less, key=lambda i: (_known(by_image[i].get(WHOLE)), uris[i]))[:WORST]
    cells = [[uris[i], *(_text(by_image[i].get(s)) for s in (WHOLE, REGION))] for i in order]
    header = ("image", WHOLE, REGION)
    yield Table(f"The {len(cells)} of which least stayed", header, cells, told.split)


def _known(value: float | None) -> float:
    return 1.0 if value is None else value


def _text(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"
