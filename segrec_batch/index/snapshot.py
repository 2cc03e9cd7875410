"""Snapshots of an index, and the protocol by which its four Delta tables change together.

    INDEX/images, INDEX/regions, INDEX/descriptors, INDEX/failures    Delta tables
    INDEX/models/BUNDLE_ID                                            model bundles

A *snapshot* is a version of `images`. Each commit of `images` records, as Delta transaction
identifiers, the bundle and the versions of the other tables that belong to it, so a reader never
sees a partial commit or two models. The order of commits is failures, descriptors, regions, images;
the others are invisible before that of `images`. A run that stops in between leaves versions that
no snapshot names; the next commit starts from the published files. If two runs publish at the
same time, the second fails, because both change the same transaction identifiers.

`failures` has one commit for each commit of `images`. If the newest entry of the log of `images` is
missing, `failures` is at a later version than the previous snapshot names; the same holds after a
run that stopped in between. The two cases can be distinguished only if that version of `failures`
belongs to a version of `images` that is more than one ahead. So readers are warned in both cases,
nothing is deleted meanwhile, and the next run of the indexing job mends both from the sources.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as copy_with
from typing import TYPE_CHECKING, Any

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index import commits, delta
from segrec_batch.index.files import DataFile, count_rows
from segrec_batch.index.history import add_roots
from segrec_batch.index.schema import TABLES, schemas
from segrec_batch.index.snapshot_log import (
    COMPANIONS,
    TARGET,
    Files,
    make_identifiers,
    read_log,
)
from segrec_batch.model.spec import BUNDLE_FILE, ModelSpec, bundle_id, read_spec
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import shorten

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model  # torch

log = logging.getLogger(__name__)

COMMIT_SECONDS = 60.0  # a longer commit counts as interrupted
_UNFINISHED_PATH = re.compile(
    rf"models/[0-9a-f]{{16}}/({BUNDLE_FILE})|({'|'.join(TABLES)})/_delta_log/[\w.#-]+"
)
_warned: set[str] = set()


@dataclass(frozen=True)
class Snapshot:
    """One consistent state of an index.

    Attributes:
        index: URI of the index.
        versions: version of each table.
        files: files of each table.
        model_id: id of the model.
        spec: spec of the model.
        ahead: versions of tables that are later than the newest snapshot names, and were so for
            longer than a commit takes; see `problem`.
        problem: the cause of `ahead`, and the remedy; empty if `ahead` is empty.
    """

    index: str
    versions: Mapping[str, int]
    files: Files
    model_id: str
    spec: ModelSpec
    ahead: Mapping[str, int] = field(default_factory=dict, compare=False)
    problem: str = field(default="", compare=False)

    @property
    def version(self) -> int:
        """The version of `images`, which is also that of the snapshot."""
        return self.versions["images"]

    @property
    def all_files(self) -> Iterator[DataFile]:
        """The files of all tables."""
        return (file for files in self.files.values() for file in files)

    def rows(self, table: str) -> int:
        """Return the number of rows of a table; opens no data file."""
        return count_rows(self.files[table], table)

    def vectors(self, descriptor: str) -> int:
        """Return the number of rows of a descriptor id; opens no data file."""
        return sum(f.rows for f in self.files["descriptors"] if f.partition == descriptor)

    @property
    def bundle_id(self) -> str:
        """Id of the bundle: the model and its descriptors."""
        return bundle_id(self.model_id, self.spec)

    @property
    def model_uri(self) -> str:
        """URI of the bundle."""
        return model_uri(self.index, self.bundle_id)


def model_uri(index: str, bundle_id: str) -> str:
    """Return the URI of a bundle in an index."""
    return storage.join(index, "models", bundle_id)


def exists(index: str) -> bool:
    """Return True if there is an index at a URI. Raises StorageError if the store fails."""
    with delta.convert_errors(index):
        return delta.exists(index, "images")


def create(index: str, model: "Model") -> Snapshot:
    """Create an empty index for a model, or complete an unfinished one.

    Raises InputError for a folder with other content.
    """
    if not exists(index):
        check_place(index)
    model.save(model_uri(index, model.bundle_id))
    names = make_identifiers(dict.fromkeys(COMPANIONS, 0), model.bundle_id)
    with delta.convert_errors(index):
        for table, schema in schemas(model.spec.classes).items():
            commits.create_table(index, table, schema, names)
    return open_snapshot(index)


def check_place(index: str) -> None:
    """Raise InputError for a folder that is neither empty nor of an unfinished `create`."""
    storage.refuse_foreign_files(
        index,
        lambda path: bool(_UNFINISHED_PATH.fullmatch(path)),
        "an index",
        "give a new or empty folder as --index; of an index whose images/_delta_log is lost, put "
        "that back (bucket versions, backup)",
    )


def empty_snapshot(index: str, model_id: str, spec: ModelSpec) -> Snapshot:
    """Return the snapshot that `create` makes."""
    versions = dict.fromkeys(TABLES, 0)
    return Snapshot(index, versions, dict.fromkeys(TABLES, ()), model_id, spec)


def open_snapshot(index: str, version: int | None = None) -> Snapshot:
    """Return a snapshot of an index, by default the newest.

    In an older version, the newest replacements stand for files that a purge has rewritten. Logs a
    warning, once per process, if a later snapshot may have been published and lost.

    Raises:
        IndexStateError: The index is damaged, or vacuum has removed files or the model of the
            version.
        StorageError: The index cannot be read.
    """
    state = read_log(index, version)
    if version is not None:
        _check_files_exist(index, version, state.files, state.bundle)
    spec, model_id = read_spec(model_uri(index, state.bundle))
    if bundle_id(model_id, spec) != state.bundle:
        raise IndexStateError(
            f"{model_uri(index, state.bundle)}: holds another bundle, {bundle_id(model_id, spec)}"
        )
    _check_classes(index, state.files, state.classes, spec)
    ahead = state.ahead if state.age > COMMIT_SECONDS else {}
    problem = state.describe_problem(index) if ahead else ""
    if problem and problem not in _warned:
        _warned.add(problem)
        log.warning(problem, extra={"event": "ahead", "index": index, "ahead": ahead})
    return Snapshot(index, state.versions, state.files, model_id, spec, ahead, problem)


def _check_classes(index: str, files: Files, classes: Sequence[str], spec: ModelSpec) -> None:
    """Check that the log has the class names of the model, since they become SQL and folders."""
    unknown = {str(f.partition) for f in files["regions"]}.difference(spec.all_classes)
    if tuple(classes) != spec.classes or unknown:
        names = [*classes, *sorted(unknown.difference(classes))]
        raise IndexStateError(
            f"{index}: has the classes {shorten(', '.join(names))}, its model "
            f"{shorten(', '.join(spec.classes))}; put the model of the index back, or index anew"
        )


def _check_files_exist(index: str, version: int, files: Files, bundle: str) -> None:
    index = storage.absolute(index)
    expected = [f.uri(index) for table_files in files.values() for f in table_files]
    expected.append(storage.join(model_uri(index, bundle), "model.json"))
    folders = [*(storage.join(index, t) for t in TABLES), model_uri(index, bundle)]
    present = {uri for folder in folders for uri, *_ in storage.find_files(folder, links=True)}
    missing = [uri for uri in expected if uri not in present]
    if missing:
        raise IndexStateError(
            f"{index}: version {version} cannot be opened: {len(missing)} of its files are gone, "
            f"e.g. {missing[0]}; vacuum keeps those of its retention only"
        )


def commit(
    base: Snapshot,
    add: Sequence[DataFile],
    remove: Sequence[DataFile] = (),
    info: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Publish a snapshot: the files of `base` without `remove`, and with `add`.

    `info` is stored with the commit of `images`. Raises IndexStateError if another run has
    published since `base`; then this commit stays invisible.
    """
    return replace(base, with_changes(base, add, remove), info)


def adopt(base: Snapshot, spec: ModelSpec) -> Snapshot:
    """Return `base` with the descriptors of another spec; to commit after its bundle is stored.

    Vectors of descriptors that `spec` lacks, or has with other settings, are removed.
    """
    ids = {d.id for d in spec.descriptors}
    vectors = tuple(f for f in base.files["descriptors"] if f.partition in ids)
    return copy_with(base, spec=spec, files={**base.files, "descriptors": vectors})


def with_changes(
    base: Snapshot, add: Sequence[DataFile], remove: Sequence[DataFile] = ()
) -> Snapshot:
    """Return `base` without the files of `remove` and with those of `add`."""
    removed = {(f.table, f.path) for f in remove}
    files = {
        table: (
            *(f for f in table_files if (table, f.path) not in removed),
            *(f for f in add if f.table == table),
        )
        for table, table_files in base.files.items()
    }
    return copy_with(base, files=files)


def replace(base: Snapshot, successor: Snapshot, info: Mapping[str, Any] | None = None) -> Snapshot:
    """Publish the files and the model of `successor` as the successor of `base`; see `commit`."""
    index = base.index
    try:
        with delta.convert_errors(index):
            if delta.open_table(index, "images").version() != base.version:
                raise IndexStateError(_describe_conflict(base))  # before any table is ahead
            versions = {
                table: commits.replace_files(
                    index,
                    table,
                    successor.files[table],
                    {TARGET: base.version + 1},
                    even_if_equal=table == COMPANIONS[0],
                )
                for table in COMPANIONS
            }
            images = delta.open_table(index, "images")
            if images.version() != base.version:
                raise IndexStateError(_describe_conflict(base))
            schema = schemas(successor.spec.classes)["images"]
            names = make_identifiers(versions, successor.bundle_id)
            with_roots = add_roots(index, images, info or {})
            commits.publish_images(
                index, images, successor.files["images"], schema, names, with_roots
            )
    except commits.CommitFailedError as error:
        raise IndexStateError(_describe_conflict(base)) from error
    return open_snapshot(index)


def _describe_conflict(base: Snapshot) -> str:
    return (
        f"{base.index}: another run has published since version {base.version}, on which this one "
        "is built. Nothing of this commit is visible; run again to do only what is still missing"
    )
