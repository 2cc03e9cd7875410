"""The report on segmentation: from settings to what is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.segmentation import page
from segrec_batch.evaluation.segmentation.counts import SEGREC, class_names, counts_table, tallies
from segrec_batch.evaluation.segmentation.coverage import calibration
from segrec_batch.evaluation.segmentation.judge import DOMINANT, PIXELS, dominant, estimates
from segrec_batch.evaluation.segmentation.plates import galleries
from segrec_batch.evaluation.segmentation.study import Rival, Settings, Study, conduct, labelled
from segrec_batch.labels.labelled import fingerprint, load_classes

TIES = (
    "of equal scores the class that comes first, background before all; of equally large "
    "dominant classes the first"
)


def segmentation_report(settings: Settings, rivals: Sequence[Rival] = ()) -> Report:
    """Fit and judge what the settings say. Raises InputError, ModelError, DeviceError."""
    classes = load_classes(settings.classes)
    images, test = labelled(settings)
    study = conduct(settings, images, test, classes, rivals)
    counts = counts_table(study.rows, classes.names)
    found = estimates(counts, settings.seed)
    spec = study.model.spec
    main = next(t for t in tallies(counts) if t.method == SEGREC)
    method = study.method(study.main)
    examples = galleries(main, study.judged, classes, method, spec.colours)
    return Report(
        title="How well images are segmented",
        provenance=Provenance(
            kind="segmentation",
            data=fingerprint([*images, *test], classes),
            ties=TIES,
            seed=settings.seed,
            model_id=study.model.model_id,
            weights=spec.weights,
        ),
        estimates=found,
        counts=counts,
        sections=page.sections(counts, page.figures_of(counts, found), examples),
        details=_details(counts, study),
        not_run=study.not_run,
        notice=spec.notice,
    )


def _details(counts: pa.Table, study: Study) -> dict[str, Any]:
    names = class_names(counts)
    confusion: dict[str, dict[str, Mapping[str, Any]]] = {}
    for tally in tallies(counts):
        confusion.setdefault(tally.split, {})[tally.method] = {
            PIXELS: tally.confusion.sum(axis=0).tolist(),
            DOMINANT: dominant(tally.confusion).sum(axis=0).tolist(),
        }
    main = next(t for t in tallies(counts) if t.method == SEGREC)
    return {
        "classes": names,
        "confusion": confusion,
        "calibration": {name: calibration(main, k) for k, name in enumerate(names[1:], start=1)},
        "methods": study.methods,
    }
