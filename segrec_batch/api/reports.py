"""Steps that the functions behind `segrec evaluate` share."""

from typing import TYPE_CHECKING

from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.evaluation.report import Report
    from segrec_batch.evaluation.retrieval.masks import Masks
    from segrec_batch.evaluation.retrieval.truth import Folders


def check_place(folder: str | None) -> None:
    """Check that a report can be written to a folder, if there is one."""
    from segrec_batch.evaluation.report import check_report_place

    if folder is not None:
        check_report_place(folder)


def write_report(report: "Report", folder: str | None) -> "Report":
    """Write a report to a folder, if there is one; return the report."""
    if folder is not None:
        report.write(folder)
    return report


def choose_groups(
    labels: str,
    masks: str | None,
    classes: str | None,
    window: tuple[float, float],
    choices: str = "folder or masks",
) -> "Folders | Masks":
    """Return the groups of images by `labels`: `folder` or `masks`. Raises InputError.

    Args:
        labels: name of the groups.
        masks: folder of masks, for `masks`.
        classes: JSON file of classes, for `masks`.
        window: share that the dominant class has to fill, for `masks`.
        choices: names that an error lists.
    """
    from segrec_batch.evaluation.retrieval.masks import Masks
    from segrec_batch.evaluation.retrieval.truth import Folders

    if labels == "folder":
        return Folders()
    if labels != "masks":
        raise InputError(f"labels {labels!r}: give {choices}")
    if not (masks and classes):
        raise InputError("labels masks need masks and classes")
    return Masks(masks, classes, window)
