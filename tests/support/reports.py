"""A report with every kind of item, under names of any kind."""

from functools import cache

import numpy as np
import pyarrow as pa
from PIL import Image

from segrec_batch.evaluation.items import Gallery, GalleryImage, Lead, Plot, Section, Table, Text
from segrec_batch.evaluation.plots import Line, dot_plot, heat_map, line_plot, step_plot
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.statistics import Estimate, Key

IOU = Estimate(Key("iou", cls="car"), 0.5, 0.41, 0.588, 101)
ABSENT = Estimate(Key("iou", cls="person"), None, None, None, 0)


@cache
def plots(name: str = "svm") -> dict[str, str]:
    x = np.linspace(0, 1, 5)
    lines = {f"{name} {i}": Line(x, x**i, x**i - 0.1, x**i + 0.1) for i in range(1, 10)}
    return {
        "line": line_plot(lines, "recall", "precision", diagonal=True),
        "dot": dot_plot({f"{name} car": {"a": IOU, "b": ABSENT}}, "IoU"),
        "heat": heat_map(np.array([[0.0, 1.0], [np.nan, 0.5]]), [name, "b"], ["a", "b"], "y", "x"),
        "step": step_plot({name: x[1:], "b": x[:-1]}, x, "σ", "share"),
    }


def report(name: str = "car.jpg", created_at: str = "2026-11-22T03:00:00+00:00") -> Report:
    grey = Image.new("RGB", (80, 60), "grey")
    labels = Image.new("P", (80, 60), 1)
    labels.putpalette(bytes((0, 0, 0, 230, 25, 75)))
    shots = [
        GalleryImage(grey, name, labels, "good"),
        GalleryImage(None, name, None, "bad"),
        GalleryImage(grey, name),
    ]
    return Report(
        title=f"Report of {name}",
        provenance=Provenance(
            "retrieval", f"data {name}", "by image_id", created_at=created_at, index=name, version=3
        ),
        estimates=[IOU, ABSENT],
        counts=pa.table({"image": ["a", "b"], "hits": [1, 2]}),
        sections=[
            Section("Figures", [
                Text(f"About {name}."),
                Table("Per class", ["class", "IoU"], [["car", IOU], [name, ABSENT]]),
                Table("Wide", [f"column {i}" for i in range(12)], [[name] * 12]),
            ]),
            Section("Plots", [Plot(f"{name} {k}", svg, name) for k, svg in plots().items()]),
            Section(name, [Gallery(name, [(name, shots)], {name: "#e6194b"})]),
        ],
        lead=Lead(
            f"How good is {name}?", name,
            [(name, IOU, name), ("IoU", ABSENT, name), (name, name, name)],
            Plot(name, plots()["dot"], name),
        ),
        details={name: [name]},
        not_run={f"method {name}": name},
        notice=f"Untrained: {name}",
    )  # fmt: skip


REPORT = {
    "format": 1,
    "provenance": {
        "kind": "retrieval", "data": "d", "ties": "t", "seed": 0, "model_id": "", "weights": "",
        "index": "", "version": None, "code_version": "0", "created_at": "2026-01-01T00:00:00",
    },
    "notice": None,
    "measures": [
        {
            "measure": "map", "method": "pearson", "split": "", "setting": "", "class": "",
            "k": 0, "value": 0.5, "low": 0.4, "high": 0.6, "units": 3,
        }
    ],
    "not_run": {},
    "details": {},
}  # fmt: skip
