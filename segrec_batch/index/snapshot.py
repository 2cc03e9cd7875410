"""The index: four Delta tables that change together, and snapshots of them.

    INDEX/images, INDEX/regions, INDEX/descriptors, INDEX/failures    Delta tables
    INDEX/models/BUNDLE_ID                                            the bundles that made them

A *snapshot* is a version of `images`. Each commit of `images` records, as Delta transaction
identifiers, the versions of the others that belong to it and the bundle, so a reader never sees
half a commit or two models. Commits go failures, descriptors, regions, images: what comes before
the last one is invisible. A run that dies in between leaves versions that no snapshot names; the
next commit starts from the published files. Of two runs that publish at once the second fails: both
move the same transaction identifiers.

`failures` has a commit of its own for each one of `images`. So if the newest entry of the log of
`images` is lost, `failures` is ahead of what the snapshot before names, as it is after a run that
died in between. Nothing tells the two apart for certain unless `failures` was committed for a
version of `images` that is more than one ahead; so readers are warned of both, nothing is deleted
meanwhile, and the next run of the indexing job mends both: it commits what the sources have.
"""

import datetime as dt
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from segrec_batch.common.errors import IndexStateError, ModelError, StorageError
from segrec_batch.index import delta, log
from segrec_batch.index.files import DataFile, count_rows
from segrec_batch.index.purged import read_replacements
from segrec_batch.index.schema import TABLES, schemas
from segrec_batch.model.spec import BUNDLE_FILE, ModelSpec, bundle_id, read_spec
from segrec_batch.sources import storage
from segrec_batch.sources.roots import ImageRoots, parse_roots, scheme_of
from segrec_batch.sources.strict_json import shorten

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model  # torch

_log = logging.getLogger(__name__)

_COMPANIONS = tuple(t for t in TABLES if t != "images")
_FOR = "images"  # the transaction identifier of the others: the version of `images` they are for
COMMIT_SECONDS = 60.0  # a commit that takes longer than that is taken for one that was stopped
_ROOTS = "image_roots"  # the key of a commit's information
_UNFINISHED = re.compile(
    rf"models/[0-9a-f]{{16}}/({BUNDLE_FILE})|({'|'.join(TABLES)})/_delta_log/[\w.#-]+"
)

Files = Mapping[str, tuple[DataFile, ...]]


@dataclass(frozen=True)
class Snapshot:
    """One consistent state of an index: table versions and the files in them.

    ahead: of the newest snapshot, the tables that have been at a later version for longer than a
    commit takes, and that version; see `problem`.
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
        """The version of `images`, by which a snapshot is named."""
        return self.versions["images"]

    @property
    def all_files(self) -> Iterator[DataFile]:
        """The files of all tables."""
        return (file for files in self.files.values() for file in files)

    def rows(self, table: str) -> int:
        """Rows of a table, from the log."""
        return count_rows(self.files[table], table)

    def vectors(self, descriptor: str) -> int:
        """Rows of a descriptor, by its id, from the log."""
        return sum(f.rows for f in self.files["descriptors"] if f.partition == descriptor)

    @property
    def bundle_id(self) -> str:
        """The bundle that made it: the model and its descriptors."""
        return bundle_id(self.model_id, self.spec)

    @property
    def model_uri(self) -> str:
        """Where the bundle that made it lies."""
        return model_uri(self.index, self.bundle_id)


@dataclass(frozen=True)
class Commit:
    """One entry of an index's history: a version, when it was made, and `info` of `commit`."""

    version: int
    time: dt.datetime
    info: Mapping[str, Any]


def model_uri(index: str, bundle_id: str) -> str:
    """Where an index keeps a bundle."""
    return storage.join(index, "models", bundle_id)


def exists(index: str) -> bool:
    """Whether there is an index at a URI. Raises StorageError if that cannot be told."""
    with delta.errors(index):
        return delta.exists(index, "images")


def create(index: str, model: "Model") -> Snapshot:
    """Make an empty index for a model; what an earlier attempt left unfinished is completed.

    Raises InputError for a folder that holds anything else.
    """
    if not exists(index):
        check_place(index)
    model.save(model_uri(index, model.bundle_id))
    names = _names(dict.fromkeys(_COMPANIONS, 0), model.bundle_id)
    with delta.errors(index):
        for table, schema in schemas(model.spec.classes).items():
            delta.create(index, table, schema, names)
    return open_snapshot(index)


def check_place(index: str) -> None:
    """Raise InputError for a folder that is neither empty nor left by an unfinished `create`."""
    storage.refuse_strangers(
        index,
        lambda path: bool(_UNFINISHED.fullmatch(path)),
        "an index",
        "give a new or empty folder as --index; of an index whose images/_delta_log is lost, put "
        "that back (bucket versions, backup)",
    )


def empty_snapshot(index: str, model_id: str, spec: ModelSpec) -> Snapshot:
    """What `create` would make, without making it."""
    versions = dict.fromkeys(TABLES, 0)
    return Snapshot(index, versions, dict.fromkeys(TABLES, ()), model_id, spec)


def open_snapshot(index: str, version: int | None = None) -> Snapshot:
    """The newest snapshot, or that of a version. Raises IndexStateError, StorageError.

    Of an older version, files that a purge has rewritten are given as they are now; it is an error
    if vacuum has taken any of them, or the model. Warns, once in a process, if the newest one may
    not be what was published last.
    """
    found = read_log(index, version)
    if version is not None:
        _check_in_place(index, version, found.files, found.bundle)
    spec, model_id = read_spec(model_uri(index, found.bundle))
    if bundle_id(model_id, spec) != found.bundle:
        raise IndexStateError(
            f"{model_uri(index, found.bundle)}: holds another bundle, {bundle_id(model_id, spec)}"
        )
    _check_classes(index, found.files, found.classes, spec)
    ahead = found.ahead if found.age > COMMIT_SECONDS else {}
    problem = found.problem(index) if ahead else ""
    if problem and problem not in _warned:
        _warned.add(problem)
        _log.warning(problem, extra={"event": "ahead", "index": index, "ahead": ahead})
    return Snapshot(index, found.versions, found.files, model_id, spec, ahead, problem)


_warned: set[str] = set()


def _check_classes(index: str, files: Files, classes: Sequence[str], spec: ModelSpec) -> None:
    """The names in the log become SQL and folders; they have to be those of the model."""
    strange = {str(f.partition) for f in files["regions"]}.difference(spec.all_classes)
    if tuple(classes) != spec.classes or strange:
        found = [*classes, *sorted(strange.difference(classes))]
        raise IndexStateError(
            f"{index}: is of the classes {shorten(', '.join(found))}, its model of "
            f"{shorten(', '.join(spec.classes))}; put the model of the index back, or index anew"
        )


@dataclass(frozen=True)
class Log:
    """What the log says of a snapshot: versions, files and bundle_id, be they still there or not.

    classes: the foreground classes that `images` has columns of. ahead: of the newest snapshot,
    tables that are at a later version, and that version. meant: the latest version of `images` that
    these were committed for. age: seconds since, without sign.
    """

    versions: Mapping[str, int]
    files: Files
    bundle: str
    classes: tuple[str, ...]
    ahead: Mapping[str, int]
    meant: int
    age: float

    def problem(self, index: str) -> str:
        """What it means that tables are ahead, and what to do."""
        newest = self.versions["images"]
        tables = ", ".join(
            f"{t} is at version {v}, the snapshot names {self.versions[t]}"
            for t, v in self.ahead.items()
        )
        cause = "a run was interrupted, or the newest entry of images/_delta_log was lost"
        if self.meant > newest + 1:
            lost = f"{newest + 1} to {self.meant - 1}"
            cause = f"entries {lost} of images/_delta_log are lost, maybe more"
        return (
            f"{index}: {tables}: {cause}; if entries are lost, put them back (bucket versions, "
            "backup), else run segrec index again, which mends it from the sources"
        )


def read_log(index: str, version: int | None = None) -> Log:
    """Return what the log says of the newest snapshot or of a version.

    Raises IndexStateError, also for a log that lacks entries or has damaged ones; StorageError.
    """
    try:
        return _parse_log(index, version)
    except (ValueError, KeyError, TypeError, OverflowError, ModelError) as error:
        raise IndexStateError(
            f"{index}: its log is damaged, or not of segrec_batch: {error}; take the index from "
            "its backup, or index anew"
        ) from error


def _parse_log(index: str, version: int | None) -> Log:
    with delta.errors(index, version):
        images = delta.open_table(index, "images", version)
        names = {t: images.transaction_version(t) for t in _COMPANIONS}
        named = {t: v for t, v in names.items() if v is not None}
        key = images.transaction_version(log.MODEL)
        files = {"images": delta.files("images", images)}
        delta.check(index, "images", images, files["images"])
        if key is None or len(named) < len(names):
            raise IndexStateError(f"{index}: made by another version of segrec_batch; index anew")
        if not all(map(delta.can_be_version, named.values())):
            raise ValueError(f"there is no version {max(named.values(), key=abs)}")
        classes = delta.check_table("images", images)
        newest = {}
        for name, wanted in named.items():
            # of the newest snapshot as it is now, which costs no more
            table = delta.open_table(index, name, None if version is None else wanted)
            if table.version() < wanted:
                raise IndexStateError(_behind(index, name, table.version(), wanted))
            if table.version() > wanted:
                newest[name] = table
                table = delta.open_table(index, name, wanted)
            delta.check_table(name, table)
            files[name] = delta.files(name, table)
            delta.check(index, name, table, files[name])
            if (table.transaction_version(_FOR) or 0) > images.version():
                raise IndexStateError(_behind(index, name, wanted - 1, wanted))
        times = [delta.committed_at(table) for table in newest.values()]
        meant = [table.transaction_version(_FOR) or 0 for table in newest.values()]
    return Log(
        versions={**named, "images": images.version()},
        files=files if version is None else _as_purged(index, files),
        bundle=log.bundle_of(key),
        classes=classes,
        ahead={t: table.version() for t, table in newest.items()},
        meant=max(meant, default=0),
        age=abs(time.time() - max(times, default=0.0)),
    )


def _behind(index: str, table: str, version: int, wanted: int) -> str:
    return (
        f"{index}: {table} is at version {version}, the snapshot names {wanted}: the newest "
        f"entries of {table}/_delta_log are lost; put them back (bucket versions, backup), or "
        "go back to a version before them with segrec maintain rollback"
    )


def _names(versions: Mapping[str, int], bundle: str) -> dict[str, int]:
    """What a commit of `images` names: versions, and the bundle_id as a signed 64-bit integer."""
    return {**versions, log.MODEL: int.from_bytes(bytes.fromhex(bundle), signed=True)}


def _as_purged(index: str, files: Files) -> Files:
    now = read_replacements(index)
    found = {t: [now.get((t, f.path), f) for f in members] for t, members in files.items()}
    return {t: tuple(f for f in members if f is not None) for t, members in found.items()}


def _check_in_place(index: str, version: int, files: Files, bundle: str) -> None:
    index = storage.absolute(index)
    wanted = [f.uri(index) for members in files.values() for f in members]
    wanted.append(storage.join(model_uri(index, bundle), "model.json"))
    folders = [*(storage.join(index, t) for t in TABLES), model_uri(index, bundle)]
    there = {uri for folder in folders for uri, *_ in storage.find_files(folder, links=True)}
    missing = [uri for uri in wanted if uri not in there]
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
    """Publish one new snapshot: the files of `base`, less `remove`, plus `add`.

    `info` is kept with the commit of `images`. Raises IndexStateError if another run has published
    since `base`; the index is then as that run left it.
    """
    return replace(base, with_changes(base, add, remove), info)


def adopt(base: Snapshot, spec: ModelSpec) -> Snapshot:
    """`base` with other descriptors, to be committed once their bundle is at its `model_uri`.

    Vectors of descriptors that `spec` does not have, or has otherwise, are left out.
    """
    known = {d.id for d in spec.descriptors}
    left = tuple(f for f in base.files["descriptors"] if f.partition in known)
    return replaced(base, spec=spec, files={**base.files, "descriptors": left})


def with_changes(
    base: Snapshot, add: Sequence[DataFile], remove: Sequence[DataFile] = ()
) -> Snapshot:
    """`base` with other files: less `remove`, plus `add`."""
    removed = {(f.table, f.path) for f in remove}
    files = {
        table: (
            *(f for f in members if (table, f.path) not in removed),
            *(f for f in add if f.table == table),
        )
        for table, members in base.files.items()
    }
    return replaced(base, files=files)


def replace(base: Snapshot, wanted: Snapshot, info: Mapping[str, Any] | None = None) -> Snapshot:
    """Publish the files and the model of `wanted` as the successor of `base`; see `commit`."""
    try:
        with delta.errors(base.index):
            if delta.open_table(base.index, "images").version() != base.version:
                raise IndexStateError(_overtaken(base))  # before it leaves anything ahead
            versions = {t: _bring(base, t, wanted.files[t]) for t in _COMPANIONS}
            images = delta.open_table(base.index, "images")
            if images.version() != base.version:
                raise IndexStateError(_overtaken(base))
            schema = schemas(wanted.spec.classes)["images"]
            names = _names(versions, wanted.bundle_id)
            told = _with_roots(base.index, images, info or {})
            delta.publish(base.index, images, wanted.files["images"], schema, names, told)
    except delta.CommitFailedError as error:
        raise IndexStateError(_overtaken(base)) from error
    return open_snapshot(base.index)


def _bring(base: Snapshot, table: str, wanted: Sequence[DataFile]) -> int:
    names = {_FOR: base.version + 1}
    return delta.bring_to(base.index, table, wanted, names, always=table == _COMPANIONS[0])


def _overtaken(base: Snapshot) -> str:
    return (
        f"{base.index}: another run has published since version {base.version}, on which this one "
        "is built. Nothing of this commit is visible; run again to do only what is still missing"
    )


def newest_version(index: str) -> int:
    """The version of the newest snapshot. Raises IndexStateError."""
    with delta.errors(index):
        return delta.open_table(index, "images").version()


def choose_roots(index: str, named: Sequence[str] = ()) -> ImageRoots:
    """The roots below which images of an index may be fetched: those named, else its own.

    An index of before roots were kept, or one that a query cache was made of and that is gone, has
    none. Raises InputError for an empty name, IndexStateError for roots that nobody indexes from.
    """
    if named:
        return ImageRoots.of(named)
    try:
        if scheme_of(index) in ("file", "s3") and exists(index):
            with delta.errors(index):
                return _roots_of(index, delta.open_table(index, "images"))
    except StorageError:
        pass
    return ImageRoots(())


def _roots_of(index: str, images: Any) -> ImageRoots:
    """What the newest commit of `images` says, which says all that was said before."""
    try:
        return parse_roots(delta.last_commit(images).get(_ROOTS, []))
    except ValueError as error:
        raise IndexStateError(f"{index}: its log is damaged: {error}") from error


def _with_roots(index: str, images: Any, info: Mapping[str, Any]) -> dict[str, Any]:
    """Information of a commit on `images` with all roots so far and that of its own run."""
    run = info.get("segrec", {}).get("images_root")
    roots = _roots_of(index, images).extended(run and [run])
    return {**info, _ROOTS: [*parse_roots([*roots.uris]).uris]}


def history(index: str) -> list[Commit]:
    """The snapshots that the log remembers, newest first. Raises IndexStateError."""
    newest = newest_version(index)
    # not delta-rs's history: that counts entries, and gives wrong versions where one is lost
    try:
        found = {v: log.commit_info(a) for v, a in log.read_entries(index, "images").items()}
        return [Commit(v, log.commit_time(i), i) for v, i in found.items() if v <= newest]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise IndexStateError(f"{index}: its log is damaged: {error}") from error
