"""Function behind `segrec index`."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segrec_batch.common.errors import InputError
from segrec_batch.common.limits import Limit, parse_limit

if TYPE_CHECKING:
    from segrec_batch.index.snapshot import Snapshot
    from segrec_batch.pipeline.run_stats import RunStats


def index_images(
    images: str,
    model: str,
    index: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    max_read_failures: Limit | str | None = None,
    max_gone: Limit | str = "50%",
    rebuild: bool = False,
    drop_descriptors: bool = False,
    device: str = "auto",
    gpus: int | None = None,
    wait: float = 1800.0,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    commit_seconds: float = 300.0,
) -> "tuple[RunStats, Snapshot]":
    """Bring an index up to date with a folder of images, on Ray.

    Args:
        images: folder of images.
        model: model bundle.
        index: folder of the index, made if missing.
        include: globs of paths below `images`; others are left out.
        exclude: globs of paths below `images` to leave out.
        limit: number of images to process at most.
        retry_failed: try images again that failed before.
        max_read_failures: sources that may be unreadable in a rebuild, "1%" or a count.
        max_gone: sources of the index that may be gone, "50%" or a count.
        rebuild: index everything anew, also with another model.
        drop_descriptors: allow a model with fewer descriptors.
        device: auto, cpu or cuda.
        gpus: GPUs to wait for; None takes those of the cluster.
        wait: seconds to wait for the first of `gpus`.
        engine: auto, ncnn or torch.
        precision: auto, float32 or bfloat16.
        batch_size: images.
        commit_seconds: time between commits.

    Returns:
        Counts and costs of the run, and the snapshot that it published.
    """
    from segrec_batch.pipeline.plan import Request
    from segrec_batch.pipeline.run import Execution
    from segrec_batch.pipeline.run import index_images as run

    gone = _limit(max_gone) if isinstance(max_gone, str) else max_gone
    unread = max_read_failures
    unread = _limit(unread) if isinstance(unread, str) else unread
    request = Request(images, tuple(include), tuple(exclude), limit, retry_failed, gone, unread)
    execution = Execution(device, batch_size, commit_seconds, gpus, wait, engine, precision)
    return run(request, model, index, execution, rebuild, drop_descriptors)


def _limit(text: str) -> Limit:
    try:
        return parse_limit(text)
    except argparse.ArgumentTypeError as error:
        raise InputError(str(error)) from error
