"""The index: four Delta tables that change together, and snapshots of them.

    INDEX/images, INDEX/regions, INDEX/descriptors, INDEX/failures    Delta tables
    INDEX/models/BUNDLE_ID                                            the bundles that made them

A *snapshot* is a version of `images`. Each commit of `images` records, as Delta transaction
identifiers, the versions of the others that belong to it and the bundle, so a reader never sees
half a commit or two models. Commits go failures, descriptors, regions, images: what comes before
the last one is invisible. A run that dies in between leaves versions that no snapshot names; the
next commit starts from the published files. Of two runs that publish at once the second fails: both
move the same transaction identifiers.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from segrec_batch import storage
from segrec_batch.errors import IndexStateError, ModelError, StorageError
from segrec_batch.model.spec import ModelSpec, bundle_id, read_spec
from segrec_batch.roots import ImageRoots, parse_roots, scheme_of
from segrec_batch.store import delta
from segrec_batch.store.files import DataFile, count_rows
from segrec_batch.store.purged import read_replacements
from segrec_batch.store.schema import TABLES, schemas
from segrec_batch.strict_json import shorten

if TYPE_CHECKING:
    from segrec_batch.model.bundle import Model  # torch

_COMPANIONS = tuple(t for t in TABLES if t != "images")
_ROOTS = "image_roots"  # the key of a commit's information
_MODEL = "model"  # the transaction identifier that names a snapshot's bundle
_64_BITS = 2**64 - 1

Files = Mapping[str, tuple[DataFile, ...]]


@dataclass(frozen=True)
class Snapshot:
    """One consistent state of an index: table versions and the files in them."""

    index: str
    versions: Mapping[str, int]
    files: Files
    model_id: str
    spec: ModelSpec

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
    """Make an empty index for a model; what an earlier attempt left unfinished is completed."""
    model.save(model_uri(index, model.bundle_id))
    names = _names(dict.fromkeys(_COMPANIONS, 0), model.bundle_id)
    with delta.errors(index):
        for table, schema in schemas(model.spec.classes).items():
            delta.create(index, table, schema, names)
    return open_snapshot(index)


def empty_snapshot(index: str, model_id: str, spec: ModelSpec) -> Snapshot:
    """What `create` would make, without making it."""
    versions = dict.fromkeys(TABLES, 0)
    return Snapshot(index, versions, dict.fromkeys(TABLES, ()), model_id, spec)


def open_snapshot(index: str, version: int | None = None) -> Snapshot:
    """The newest snapshot, or that of a version. Raises IndexStateError, StorageError.

    Of an older version, files that a purge has rewritten are given as they are now; it is an error
    if vacuum has taken any of them, or the model.
    """
    versions, files, bundle, classes = _read_log(index, version)
    if version is not None:
        _check_in_place(index, version, files, bundle)
    spec, model_id = read_spec(model_uri(index, bundle))
    if bundle_id(model_id, spec) != bundle:
        raise IndexStateError(
            f"{model_uri(index, bundle)}: holds another bundle, {bundle_id(model_id, spec)}"
        )
    _check_classes(index, files, classes, spec)
    return Snapshot(index, versions, files, model_id, spec)


def _check_classes(index: str, files: Files, classes: Sequence[str], spec: ModelSpec) -> None:
    """The names in the log become SQL and folders; they have to be those of the model."""
    strange = {f.partition for f in files["regions"]}.difference(spec.all_classes)
    if tuple(classes) != spec.classes or strange:
        raise IndexStateError(
            f"{index}: is of the classes {shorten(', '.join(classes))}, its model of "
            f"{shorten(', '.join(spec.classes))}; put the model of the index back, or index anew"
        )


def read_log(index: str, version: int | None = None) -> tuple[dict[str, int], Files, str]:
    """What the log says of a snapshot: versions, files and bundle_id, be they still there or not.

    Raises IndexStateError, StorageError.
    """
    return _read_log(index, version)[:3]


def _read_log(
    index: str, version: int | None
) -> tuple[dict[str, int], Files, str, tuple[str, ...]]:
    """The same, and the foreground classes that `images` has columns of."""
    try:
        return _parse_log(index, version)
    except (ValueError, KeyError, TypeError, OverflowError, ModelError) as error:
        raise IndexStateError(
            f"{index}: its log is damaged, or not of segrec_batch: {error}; take the index from "
            "its backup, or index anew"
        ) from error


def _parse_log(
    index: str, version: int | None
) -> tuple[dict[str, int], Files, str, tuple[str, ...]]:
    with delta.errors(index, version):
        images = delta.open_table(index, "images", version)
        stated = {t: images.transaction_version(t) for t in _COMPANIONS}
        named = {t: v for t, v in stated.items() if v is not None}
        key = images.transaction_version(_MODEL)
        if key is None or len(named) < len(stated):
            raise IndexStateError(f"{index}: made by another version of segrec_batch; index anew")
        if not all(map(delta.can_be_version, named.values())):
            raise ValueError(f"there is no version {max(named.values(), key=abs)}")
        tables = {"images": images}
        tables.update({t: delta.open_table(index, t, v) for t, v in named.items()})
        classes = {t: delta.check_table(t, table) for t, table in tables.items()}["images"]
        files: Files = {t: delta.files(t, table) for t, table in tables.items()}
    if version is not None:
        files = _as_purged(index, files)
    found = {t: table.version() for t, table in tables.items()}
    return found, files, f"{key & _64_BITS:016x}", classes


def _names(versions: Mapping[str, int], bundle: str) -> dict[str, int]:
    """What a commit of `images` names: versions, and the bundle_id as a signed 64-bit integer."""
    return {**versions, _MODEL: int.from_bytes(bytes.fromhex(bundle), signed=True)}


def _as_purged(index: str, files: Files) -> Files:
    now = read_replacements(index)
    found = {t: [now.get((t, f.path), f) for f in members] for t, members in files.items()}
    return {t: tuple(f for f in members if f is not None) for t, members in found.items()}


def _check_in_place(index: str, version: int, files: Files, bundle: str) -> None:
    index = storage.absolute(index)
    wanted = [f.uri(index) for members in files.values() for f in members]
    wanted.append(storage.join(model_uri(index, bundle), "model.json"))
    folders = [*(storage.join(index, t) for t in TABLES), model_uri(index, bundle)]
    there = {uri for folder in folders for uri, *_ in storage.find_files(folder)}
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
            versions = {t: delta.bring_to(base.index, t, wanted.files[t]) for t in _COMPANIONS}
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


def _overtaken(base: Snapshot) -> str:
    return (
        f"{base.index}: another run has published since version {base.version}, on which this one "
        "is built. Nothing of this commit is visible; run again to do only what is still missing"
    )


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
    return {**info, _ROOTS: [*_roots_of(index, images).extended(run and [run]).uris]}


def history(index: str) -> list[Commit]:
    """The snapshots that the log remembers, newest first. Raises IndexStateError."""
    try:
        with delta.errors(index):
            entries = delta.history(index, "images")
        return [
            Commit(
                version=entry["version"],
                time=dt.datetime.fromtimestamp(entry["timestamp"] / 1000, dt.UTC),
                info=entry,
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise IndexStateError(f"{index}: its log is damaged: {error}") from error
