"""Tests of rows while images are added, changed, broken, repaired and removed in any order.

The runs have all of the indexing job except Ray, the log and the model, whose results are random.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segrec_batch.common.errors import AccountingError, SourceError
from segrec_batch.common.limits import parse_limit
from segrec_batch.images.decode import mask_shape
from segrec_batch.index.files import group_by_part, new_part
from segrec_batch.index.parts import merge_parts, read_file, write_file
from segrec_batch.index.snapshot import Snapshot, empty_snapshot, with_changes
from segrec_batch.maintenance.verify import _DUPLICATES, check_part
from segrec_batch.pipeline import commit as publish
from segrec_batch.pipeline.commit import Publisher
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.pipeline.stage_schema import SEGMENTED
from segrec_batch.pipeline.stages import decode_batch, write_batch
from segrec_batch.search.database import open_files
from segrec_batch.search.sql.connection import query
from tests.support.feature_index import SPEC, Bundle

SHAPES = ((16, 16),)
ANY = parse_limit("100%")
NAMES = ("a.png", "b.png", "c.png", "without extension")

State = dict[str, tuple[str | None, str | None]]  # content_hash and stage of a failure, by name


def segmented(decoded: pa.Table) -> pa.Table:
    """Return DECODED rows as segmented by a model with one class in each image."""
    rows: list[dict[str, Any]] = decoded.drop_columns("pixels").to_pylist()
    classes = len(SPEC.all_classes)
    for row in (row for row in rows if row["shape"]):
        seed = int(row["content_hash"], 16) % 2**32
        feature = np.random.default_rng(seed).random(512, np.float32)
        regions = np.zeros((classes, 512), np.float32)
        regions[1] = feature
        shape = mask_shape(row["height"], row["width"])
        row.update(
            grid=(1, 1), labels=b"\1", common=bytes([1]) * 1024,
            counts=[0, 1] + [0] * (classes - 2),
            feature=feature, region_features=regions.ravel(), sign_bits=[0] * 8, mask_shape=shape,
            mask=bytes([1]) * (shape[0] * shape[1]), described=[],
        )  # fmt: skip
    return pa.Table.from_pylist(rows, SEGMENTED)


@contextmanager
def without_ray() -> Iterator[None]:
    """Rewrite parts in this process inside the block."""

    def run_here(function: Callable[[Any], Any], items: Any, **_: object) -> Iterator[Any]:
        return ((item, function(item)) for item in items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "run_tasks", run_here)
        yield


@dataclass
class World:
    """A folder of images, its index, and the expected state of both."""

    folder: Path
    snapshot: Snapshot = field(init=False)
    disk: dict[str, str] = field(default_factory=dict)  # good, bad, broken, by name
    clock: int = 1_000_000_000

    def __post_init__(self) -> None:
        (self.folder / "images").mkdir()
        self.snapshot = empty_snapshot(str(self.folder / "index"), Bundle.model_id, SPEC)
        self.put("always.png", "good", 0)

    def put(self, name: str, kind: str, seed: int) -> None:
        """Write a file of a kind, newer than all before; a broken one is a dangling link."""
        path = self.folder / "images" / name
        path.unlink(missing_ok=True)
        self.disk.pop(name, None)
        if kind == "gone":
            return
        self.disk[name] = kind
        if kind == "broken":
            path.symlink_to("nowhere")
            return
        if kind == "good":
            Image.new("RGB", (9, 7), (seed, 40, 2)).save(path, "PNG")
        else:
            path.write_bytes(b"no image %d" % seed)
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    def run(self, limit: int | None = None, commits: bool = False) -> RunStats:
        """Run once and check the sums."""
        request = Request(str(self.folder / "images"), limit=limit, max_gone=ANY)
        with Plan(request, self.snapshot) as plan:
            stats = RunStats.of_plan("run", plan)
            publisher = Publisher(
                self.snapshot, stats, lambda base, add, remove, _: with_changes(base, add, remove)
            )
            for start in range(0, plan.todo, 2):
                decoded = decode_batch(plan.read_manifest(start, start + 2), SHAPES)
                index = self.snapshot.index
                publisher.add_receipts(
                    write_batch(segmented(decoded), index, SPEC, Bundle.model_id, "run")
                )
                if commits:
                    publisher.publish()
            publisher.publish_last(plan.iter_gone())
        self.snapshot = publisher.current
        return stats

    def compact(self) -> None:
        """Merge all parts into one, and one of failures."""
        files = list(self.snapshot.all_files)
        merged = merge_parts(self.snapshot.index, files)
        self.snapshot = with_changes(self.snapshot, merged, files)

    def age(self) -> None:
        """Write all rows and failures as one part, as former versions did."""
        self.compact()
        files, index, part = list(self.snapshot.all_files), self.snapshot.index, new_part()
        mixed = [write_file(index, part, f.table, read_file(index, f), f.partition) for f in files]
        self.snapshot = with_changes(self.snapshot, mixed, files)

    def state(self) -> State:
        """Return hash and failed stage of each name. Raises AssertionError for a damaged index."""
        for files in group_by_part(self.snapshot.all_files).values():
            job = (self.snapshot.index, files, SPEC, Bundle.model_id)
            assert check_part(job) == []
        with open_files(self.snapshot).connection as connection:
            assert query(connection, _DUPLICATES).num_rows == 0
            orphans = "SELECT count(*) FROM regions ANTI JOIN images USING (image_id)"
            assert connection.execute(orphans).fetchall() == [(0,)]
            rows = connection.execute(
                "SELECT parse_filename(uri), content_hash, stage FROM "
                "(SELECT uri, content_hash FROM images) FULL JOIN "
                "(SELECT uri, stage FROM failures) USING (uri)"
            ).fetchall()
            stale = "SELECT parse_filename(uri) FROM stale"
            assert {name for (name,) in connection.execute(stale).fetchall()} == {
                name for name, content, stage in rows if content and stage
            }
        return {name: (content, stage) for name, content, stage in rows}


def right(kind: str | None, old: tuple[str | None, str | None]) -> Callable[[Any], bool]:
    """Return a check of the row of an image file of a kind after a whole run."""
    content = old[0]
    return {
        "good": lambda new: new[0] is not None and new[1] is None,
        "bad": lambda new: new == (None, "decode"),
        "broken": lambda new: new == (content, "read"),
        None: lambda new: new == (None, None),
    }[kind]


STEPS = st.one_of(
    st.tuples(
        st.just("put"),
        st.sampled_from(NAMES),
        st.sampled_from(["good", "bad", "broken", "broken", "gone"]),
        st.integers(0, 3),
    ),
    st.tuples(st.just("run"), st.sampled_from([None, None, 1, 2]), st.booleans()),
    st.tuples(st.sampled_from(["compact", "age"])),
)


def live(folder: Path, steps: list[tuple[Any, ...]]) -> None:
    """Apply steps; check all rows after each run."""
    world = World(folder)
    for action, *values in [("run", None, False), *steps, ("run", None, True)]:
        if action != "run":
            getattr(world, action)(*values)
            continue
        before = world.state()
        limit, commits = values
        stats = world.run(limit, commits)
        after = world.state()
        nothing = (None, None)
        for name in {*NAMES, "always.png"}:
            old, new, kind = (
                before.get(name, nothing),
                after.get(name, nothing),
                world.disk.get(name),
            )
            if "." not in name and kind != "good":
                assert kind != "broken" or new[0] == old[0]
            else:
                assert right(kind, old)(new) or (limit and new == old and kind), (
                    name,
                    kind,
                    old,
                    new,
                )
        stale = sum(bool(content and stage) for content, stage in after.values())
        if limit is None:
            assert stats.stale == stale
            assert stats.found == len(world.disk)


@settings(max_examples=4, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_read_fault_keeps_row(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    with without_ray():
        live(tmp_path_factory.mktemp("world"), steps)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=20))
def test_read_faults_keep_rows_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    with without_ray():
        live(tmp_path_factory.mktemp("world"), steps)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a world of four indexed images."""
    world = World(tmp_path)
    for i, name in enumerate(NAMES[:3]):
        world.put(name, "good", i)
    with without_ray():
        world.run()
        yield world


def test_unreadable_source_is_stale(world: World) -> None:
    before = world.state()
    for name in NAMES[:3]:
        world.put(name, "broken", 0)
    for _ in range(2):  # the second time as the first
        stats = world.run()
        assert (stats.stale, stats.failed, stats.unchanged) == (3, 0, 1)
        assert stats.summary()["stale"] == 3
        assert world.snapshot.rows("failures") == 3
        assert world.state() == before | {n: (before[n][0], "read") for n in NAMES[:3]}
        with pytest.raises(SourceError, match=r"^3 of 3 .*most often broken link: more .* 1%\."):
            stats.check_read_failures(parse_limit("1%"))
        stats.check_read_failures(parse_limit("3"))
        stats.check_read_failures(ANY)
    world.put("a.png", "good", 0)  # as it was
    world.put("b.png", "good", 9)
    world.put("c.png", "gone", 0)
    stats = world.run()
    assert (stats.copied, stats.indexed, stats.stale, stats.gone) == (1, 2, 0, 1)
    assert world.snapshot.rows("failures") == 0
    after = world.state()
    assert after["a.png"] == before["a.png"]
    assert after["b.png"] != before["b.png"]
    assert "c.png" not in after


def test_bad_image_is_retried_only_after_change(world: World) -> None:
    world.put("a.png", "bad", 0)
    world.put("new.png", "broken", 0)
    assert (world.run().failed, world.state()["a.png"]) == (2, (None, "decode"))
    stats = world.run()
    assert (stats.skipped, stats.retried, stats.failed) == (1, 1, 1)
    world.put("a.png", "bad", 1)
    assert world.run().changed == 1


def test_stale_rows_are_copied(world: World) -> None:
    a, copy = world.folder / "images" / "a.png", world.folder / "images" / "copy.png"
    a.rename(copy)
    world.put("a.png", "broken", 0)
    stats = world.run()
    assert (stats.copied, stats.indexed, stats.stale) == (1, 1, 1)
    state = world.state()
    assert state["copy.png"][0] == state["a.png"][0]


def test_limit_passes_unreadable_sources(world: World) -> None:
    for i in range(3):
        world.put(f"bad{i}.png", "broken", 0)
    world.run()
    world.put("new.png", "good", 7)
    assert world.run(limit=1).indexed == 1
    with_failures = {n: s for n, s in world.state().items() if s[1]}
    for i in range(3):
        world.put(f"bad{i}.png", "good", i)
    for _ in with_failures:
        assert world.run(limit=1).indexed == 1, "each in its turn"


def test_shorter_file_is_a_read_failure(world: World) -> None:
    before = world.state()
    world.put("a.png", "good", 5)
    path = world.folder / "images" / "a.png"
    request = Request(str(world.folder / "images"))
    with Plan(request, world.snapshot) as plan:
        path.write_bytes(path.read_bytes()[:20])
        (row,) = decode_batch(plan.read_manifest(0, 9), SHAPES).to_pylist()
    assert (row["stage"], row["reason"][:12]) == ("read", "shorter than")
    assert world.state() == before


def test_longer_file_is_a_read_failure(world: World) -> None:
    before = world.state()
    path = world.folder / "images" / "a.png"
    small = path.read_bytes()
    world.put("a.png", "good", 5)
    grown = path.read_bytes() + bytes(len(small))
    with Plan(Request(str(world.folder / "images")), world.snapshot) as plan:
        path.write_bytes(grown)
        (row,) = decode_batch(plan.read_manifest(0, 9), SHAPES).to_pylist()
    assert (row["stage"], row["reason"][:11]) == ("read", "longer than")
    assert world.state() == before


def test_listed_and_left_out_are_all_files(world: World) -> None:
    for name in ("notes.txt", "README", "._a.png", "b.heic"):
        (world.folder / "images" / name).write_text("text")
    world.put("without extension", "good", 8)
    stats = world.run()
    assert (stats.found, stats.listed, stats.indexed) == (9, 5, 1)
    assert stats.left_out == {".txt": 1, "no extension": 1, "._*": 1, ".heic": 1}
    assert stats.summary()["left_out"] == dict(stats.left_out)
    assert "4 other files left out (._* 1, .heic 1, .txt 1, no extension 1)" in str(stats)
    stats.left_out["lost"] -= 1
    with pytest.raises(AccountingError, match="9 files found, but 5 listed, 0 excluded and 3 left"):
        stats.check_sources()


def test_sums_are_proved_from_files(world: World) -> None:
    before = world.snapshot
    world.put("a.png", "broken", 0)
    stats = world.run()
    stats.check(before, world.snapshot)
    stats.stale, stats.failed = 0, 1  # as if the old row had gone
    with pytest.raises(
        AccountingError, match="4 rows of images, less 1 and with 0 more, do not add"
    ):
        stats.check(before, world.snapshot)


def test_rows_of_left_out_files_leave(world: World) -> None:
    path = world.folder / "images" / "a.png"
    world.snapshot = with_changes(world.snapshot, [])
    old = str(path)
    path.rename(world.folder / "images" / "._a.png")
    stats = world.run()
    assert (stats.gone, stats.left_out["._*"]) == (1, 1)
    assert old not in world.state()


@pytest.mark.parametrize(("text", "accepted"), [("50%", 2), ("0%", 0), ("2", 2), ("100%", 4)])
def test_max_gone_limits(world: World, text: str, accepted: int) -> None:
    limit = parse_limit(text)
    assert not limit.is_exceeded(accepted, 4)
    if accepted < 4:
        assert limit.is_exceeded(accepted + 1, 4)
    for name in NAMES[:2]:
        world.put(name, "gone", 0)
    with Plan(Request(str(world.folder / "images")), world.snapshot) as plan:
        assert (plan.known_gone, plan.known) == (2, 4)
    superseded = world.snapshot
    empty = empty_snapshot(superseded.index, Bundle.model_id, SPEC)
    with Plan(Request(str(world.folder / "images")), empty, superseded) as plan:
        assert (plan.known_gone, plan.known, plan.not_covered) == (2, 4, 0)
