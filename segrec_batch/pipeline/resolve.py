"""Decide once, before any work, what a run does with an index."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from segrec_batch.common.errors import IndexStateError, InputError, SourceError
from segrec_batch.index import snapshot as store
from segrec_batch.index import staging
from segrec_batch.index.files import DataFile
from segrec_batch.index.history import choose_roots
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import ModelSpec, read_spec
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.search.database import open_database, translate_errors
from segrec_batch.search.sql.views import select_with_part
from segrec_batch.sources import storage
from segrec_batch.sources.roots import ImageRoots, check_root

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model

log = logging.getLogger(__name__)

_COUNT_UNREADABLE = """
SELECT count(*) FROM ({failures}) SEMI JOIN ({images}) USING (image_id)
ANTI JOIN ({staged}) USING (image_id) WHERE stage = 'read'
"""


@dataclass(frozen=True)
class ResolvedRun:
    """Decisions of one run: what it does with an index.

    Attributes:
        kind: create the index, update it, or rebuild it beside the published snapshot.
        request: images to index; their folder is an absolute URI.
        model: URI of the bundle.
        published: the snapshot that readers see; empty if the index does not exist.
        base: the snapshot that the run adds to, with the descriptors of the bundle.
    """

    kind: Literal["create", "update", "rebuild"]
    request: Request
    model: str
    published: Snapshot
    base: Snapshot

    @property
    def images_root(self) -> str:
        """The listed folder; undecodable bytes are escaped, so that commits can store it."""
        return (self.request.images or "/").encode(errors="backslashreplace").decode()

    @cached_property
    def roots(self) -> ImageRoots:
        """Roots that the published index records."""
        return choose_roots(self.published.index)

    @property
    def changes_bundle(self) -> bool:
        """True if the bundle has other descriptors than the index."""
        return self.kind == "update" and self.base.bundle_id != self.published.bundle_id

    @property
    def changes_metadata(self) -> bool:
        """True if the run commits even if no row changes."""
        if self.kind != "update":
            return False
        is_incomplete = bool(self.published.ahead)
        return self.changes_bundle or is_incomplete or not self.roots.admits(self.images_root)

    def plan(self) -> Plan:
        """Return the plan: the listed sources compared with the snapshot that the run adds to."""
        return Plan(self.request, self.base, self.published if self.kind == "rebuild" else None)

    def check(self, plan: Plan) -> None:
        """Raise InputError or SourceError if the plan would remove images that should stay."""
        if plan.not_covered:
            raise InputError(
                f"--rebuild replaces all of {self.published.index}, but {plan.not_covered:,} of "
                f"its images are not below {self.request.images} or excluded; name a folder that "
                "holds them all"
            )
        if error := self.build_gone_error(plan):
            raise error

    def build_gone_error(self, plan: Plan) -> SourceError | None:
        """Return an error if more sources are gone than the request accepts."""
        limit = self.request.max_gone
        if not limit.is_exceeded(plan.known_gone, plan.known):
            return None
        return SourceError(
            f"{plan.known_gone:,} of {plan.known:,} sources that {self.published.index} has below "
            f"{self.request.images} are gone: more than --max-gone {limit}. Nothing is changed; if "
            "the folder is complete, run again with --max-gone 100%, else repair it (is it "
            "mounted?) and run again"
        )

    def open_base(self) -> Snapshot:
        """Create the index or store a changed bundle; return the snapshot that the run adds to."""
        if self.kind == "create":
            return store.create(self.published.index, _load_bundle(self.model))
        if self.changes_bundle:
            _load_bundle(self.model).save(self.base.model_uri)
        return self.base

    def commit(
        self,
        base: Snapshot,
        add: Sequence[DataFile],
        remove: Sequence[DataFile],
        info: Mapping[str, Any],
    ) -> Snapshot:
        """Commit files; a rebuild stages them, and only its last commit has `info`."""
        if self.kind == "rebuild":
            return staging.stage(base, add, remove)
        return store.commit(base, add, remove, info)

    def finish(self, after: Snapshot, stats: RunStats) -> Snapshot:
        """Put a complete rebuild in place of the published snapshot; return the newest snapshot.

        Raises:
            SourceError: more published images than the request accepts cannot be read now and would
                lose their rows.
        """
        if self.kind != "rebuild":
            return after
        if stats.postponed:
            log.info(
                f"{stats.postponed:,} images are not indexed yet; run again with --rebuild to go on"
            )
            return self.published
        self._check_unreadable(after)
        info = {"segrec": {**stats.summary(), "rebuild": True}}
        newest = store.replace(self.published, after, info)
        staging.discard(self.published.index, after.bundle_id)
        return newest

    def _check_unreadable(self, staged: Snapshot) -> None:
        unreadable, limit = (
            _count_unreadable(self.published, staged),
            self.request.max_read_failures,
        )
        images = self.published.rows("images")
        if unreadable and (limit is None or limit.is_exceeded(unreadable, images)):
            raise SourceError(
                f"{unreadable:,} of {images:,} images of {self.published.index} cannot be read now "
                "and would lose their rows: the rebuild is kept, but not published; remove the "
                "cause and run again with --rebuild to go on, or accept the loss by "
                f"--max-read-failures {unreadable}"
            )


def resolve_run(
    request: Request,
    model: str,
    index: str,
    rebuild: bool = False,
    drop_descriptors: bool = False,
) -> ResolvedRun:
    """Decide what a run does with an index; write only the staging folder of a rebuild.

    Raises:
        SegrecError: the index, model or folder does not permit the run.
    """
    check_root(request.images or "/")
    request = replace(request, images=storage.absolute(request.images))
    index = storage.absolute(index)
    exists = store.exists(index)
    spec, model_id = read_spec(model)
    if not exists:
        store.check_place(index)
        empty = store.empty_snapshot(index, model_id, spec)
        return ResolvedRun("create", request, model, empty, empty)
    published = store.open_snapshot(index)
    if not rebuild and published.model_id != model_id:
        raise IndexStateError(
            f"{index} belongs to model {published.model_id}, not to {model_id} ({model}); rows of "
            "two models never mix: give the model of the index, a new --index, or --rebuild"
        )
    if not drop_descriptors:
        _check_descriptors(published, spec)
    if rebuild:
        staged = staging.open_staging(published, _load_bundle(model))
        return ResolvedRun("rebuild", request, model, published, staged)
    return ResolvedRun("update", request, model, published, store.adopt(published, spec))


def _check_descriptors(published: Snapshot, spec: ModelSpec) -> None:
    """Raise IndexStateError if the index has descriptors that a spec does not have."""
    names = {d.name for d in spec.descriptors}
    dropped = [d.name for d in published.spec.descriptors if d.name not in names]
    if dropped:
        raise IndexStateError(
            f"{published.index} has {', '.join(dropped)}, which this model lacks: give the "
            f"model of the index, {published.model_uri}, or add --drop-descriptors"
        )


def _load_bundle(uri: str) -> "Model":
    """Load a bundle with its tensors; imports torch, which most runs do without on the driver."""
    from segrec_batch.model.bundle import load_model

    return load_model(uri)


def _count_unreadable(published: Snapshot, staged: Snapshot) -> int:
    """Return the number of published images that the staged snapshot could not read."""
    failures = select_with_part(staged, "failures", "image_id, stage")
    images = select_with_part(published, "images", "image_id")
    if not failures or not images:
        return 0
    staged_images = (
        select_with_part(staged, "images", "image_id") or "SELECT NULL AS image_id WHERE false"
    )
    with translate_errors(published), open_database(":memory:", [published, staged]) as connection:
        sql = _COUNT_UNREADABLE.format(failures=failures, images=images, staged=staged_images)
        ((count,),) = connection.execute(sql).fetchall()
    return int(count)
