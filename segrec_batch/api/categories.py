"""Function behind `segrec evaluate categories`."""

from typing import TYPE_CHECKING

from segrec_batch.api.reports import check_place, choose_groups, write_report
from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    from segrec_batch.evaluation.report import Report


def evaluate_categories(
    index: str,
    labels: str = "folder",
    *,
    report: str | None = None,
    version: int | None = None,
    masks: str | None = None,
    classes: str | None = None,
    window: tuple[float, float] = (0.29, 0.96),
    test_share: float = 0.3,
    seed: int = 0,
) -> "Report":
    """Measure how well the feature of an image tells its category, by an SVM and its rivals.

    Args:
        index: an index or a query cache.
        labels: the category of an image is the name of its `folder`, or the dominant class of its
            label mask (`masks`).
        report: folder to write the report to; None writes nothing.
        version: snapshot of the index; None is the newest.
        masks: folder of masks, for `masks`.
        classes: JSON file of classes, for `masks`.
        window: share that the dominant class has to fill, for `masks`.
        test_share: share of the images to test on, above 0 and below 1.
        seed: of the split, the random forest and the bootstrap.
    """
    from segrec_batch.evaluation.categories.report import categories_report
    from segrec_batch.evaluation.categories.study import Settings

    check_place(report)
    if not 0 < test_share < 1:
        raise InputError(f"the test share is {test_share:g}; give one above 0 and below 1")
    truth = choose_groups(labels, masks, classes, window)
    result = categories_report(Settings(index, truth, version, test_share, seed=seed))
    return write_report(result, report)
