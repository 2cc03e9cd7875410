"""Tests of descriptors in an index: computed, added later, replaced, dropped, copied."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import segrec_batch
from segrec_batch.common.errors import IndexStateError
from segrec_batch.index.snapshot import open_snapshot
from segrec_batch.maintenance.compact import compact
from segrec_batch.maintenance.purge import purge
from segrec_batch.maintenance.verify import verify
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.engines import ENGINES
from segrec_batch.pipeline.descriptor_setup import change_descriptors, parse_addition
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, dry_run, index_images
from segrec_batch.pipeline.samples import IndexSamples
from segrec_batch.search.cache import refresh_cache

CPU = Execution("cpu", batch_size=4)
VECTORS = "SELECT parse_filename(uri) AS name, descriptor, vector, reason, run_id FROM descriptors"


@pytest.fixture(scope="module")
def models(index: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bundles of one model: `plain`, with `pca` of 4 dimensions and texture, with pca of 3."""
    snapshot = open_snapshot(index)
    samples = IndexSamples(snapshot, 8)
    plain = load_model(snapshot.model_uri)
    both = change_descriptors(
        plain, [parse_addition("pca:dimension=4"), parse_addition("texture")], [], samples
    )
    other = change_descriptors(both, [parse_addition("pca:dimension=3")], [], samples)
    folder = tmp_path_factory.mktemp("models")
    return dict(_saved(folder, {"plain": plain, "both": both, "other": other}))


def _saved(folder: Path, result: dict[str, Model]) -> Iterator[tuple[str, str]]:
    for name, model in result.items():
        model.save(str(folder / name))
        yield name, str(folder / name)


def vectors(index: str, version: int | None = None) -> dict[tuple[str, str], tuple[float, ...]]:
    result = segrec_batch.connect(index, version).sql(VECTORS).fetchall()
    return {(d, name): tuple(v) if v is not None else None for name, d, v, *_ in result}


def runs(index: str, table: str, where: str = "true") -> set[str]:
    sql = f"SELECT DISTINCT run_id FROM {table} WHERE {where}"
    return {run for (run,) in segrec_batch.connect(index).sql(sql).fetchall()}


@pytest.fixture(scope="module")
def place(scenes: Path) -> str:
    """Six images that stay as they are."""
    return str(scenes / "images" / "place_01")


@pytest.fixture(scope="module")
def grown_once(models: dict[str, str], place: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of them that got its descriptors later."""
    uri = str(tmp_path_factory.mktemp("grown") / "index")
    index_images(Request(place), models["plain"], uri, CPU)
    index_images(Request(place), models["both"], uri, CPU)
    return uri


@pytest.fixture
def grown(grown_once: str, tmp_path: Path) -> str:
    """A copy of it to change at will."""
    return str(shutil.copytree(grown_once, tmp_path / "grown"))


def test_backfill_equals_indexing_at_once(
    grown: str, models: dict[str, str], place: str, tmp_path: Path
) -> None:
    whole = str(tmp_path / "whole")
    stats, snapshot = index_images(Request(place), models["both"], whole, CPU)
    assert stats.described == 0
    assert snapshot.rows("descriptors") == 12
    assert vectors(grown) == vectors(whole)
    assert verify(open_snapshot(grown)) == verify(open_snapshot(whole)) == []
    images = "SELECT * EXCLUDE (run_id, indexed_at) FROM images ORDER BY image_id"
    before, after = (segrec_batch.connect(i).sql(images).fetchall() for i in (grown, whole))
    assert before == after


def test_backfill_computes_only_missing_vectors(
    grown: str, models: dict[str, str], place: str
) -> None:
    old, segmented = runs(grown, "descriptors"), runs(grown, "images")
    assert not old & segmented
    version = open_snapshot(grown).version
    stats, snapshot = index_images(Request(place), models["other"], grown, CPU)
    assert (stats.described, stats.indexed, snapshot.version) == (6, 0, version + 1)
    assert runs(grown, "images") == segmented
    assert runs(grown, "descriptors", "descriptor = 'texture'") == old
    assert runs(grown, "descriptors", "descriptor = 'pca'") == {stats.run_id}
    assert {len(v) for (d, _), v in vectors(grown).items() if d == "pca"} == {3}
    assert {len(v) for (d, _), v in vectors(grown, version).items() if d == "pca"} == {4}
    again, same = index_images(Request(place), models["other"], grown, CPU)
    assert (again.described, same.version) == (0, snapshot.version)


def test_dropping_descriptors_needs_the_option(
    grown: str, models: dict[str, str], place: str
) -> None:
    version = open_snapshot(grown).version
    with pytest.raises(IndexStateError, match="has pca, texture, which this model lacks"):
        index_images(Request(place), models["plain"], grown, CPU)
    assert open_snapshot(grown).version == version
    index_images(Request(place), models["plain"], grown, CPU, drop_descriptors=True)
    assert vectors(grown) == {}
    assert len(vectors(grown, version)) == 12
    assert verify(open_snapshot(grown)) == []


@pytest.mark.slow
def test_backfill_of_unreadable_image_has_a_reason(
    models: dict[str, str], images: Path, tmp_path: Path
) -> None:
    uri = str(tmp_path / "index")
    index_images(Request(str(images)), models["plain"], uri, CPU)
    victim = sorted(images.iterdir())[0]
    state, content = victim.stat(), victim.read_bytes()
    victim.write_bytes(content[:-100] + bytes(100))
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))  # so that it looks unchanged
    index_images(Request(str(images)), models["both"], uri, CPU)
    missing = "SELECT parse_filename(uri), descriptor, reason FROM descriptors WHERE vector IS NULL"
    assert segrec_batch.connect(uri).sql(missing).fetchall() == [
        (victim.name, "texture", "read: the image is not the one that was indexed")
    ]
    assert verify(open_snapshot(uri)) == []
    victim.write_bytes(content)
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = Request(str(images), retry_failed=True)
    stats, _ = index_images(again, models["both"], uri, CPU)
    assert stats.described == 1
    assert segrec_batch.connect(uri).sql(missing).fetchall() == []
    assert verify(open_snapshot(uri)) == []
    same, _ = index_images(again, models["both"], uri, CPU)
    assert same.described == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_changes_and_new_descriptors_in_one_run(
    engine: str, models: dict[str, str], images: Path, tmp_path: Path
) -> None:
    uri, execution = str(tmp_path / "index"), replace(CPU, engine=engine, precision="float32")
    index_images(Request(str(images)), models["plain"], uri, execution)
    first, second, third, *_ = sorted(images.iterdir())
    first.unlink()
    shutil.copy(third, second)
    shutil.copy2(third, images / "copy.jpg")
    stats, snapshot = index_images(Request(str(images)), models["both"], uri, execution)
    assert (stats.gone, stats.changed, stats.new, stats.copied) == (1, 1, 1, 1)
    assert snapshot.rows("descriptors") == 2 * snapshot.rows("images") == 12
    result = vectors(uri)
    for name in ("pca", "texture"):
        assert result[name, third.name] == result[name, "copy.jpg"], "copied to the last bit"
        again = result[name, second.name]  # the same bytes, computed in another batch
        np.testing.assert_allclose(again, result[name, third.name], rtol=1e-3, atol=1e-5)
    shutil.copy2(third, images / "copy2.jpg")  # of an image that has vectors
    last, _ = index_images(Request(str(images)), models["both"], uri, execution)
    assert (last.copied, last.described) == (1, 0)
    assert vectors(uri)["texture", "copy2.jpg"] == result["texture", third.name]
    assert verify(open_snapshot(uri)) == []


@pytest.mark.slow
def test_dry_run_and_limit_skip_backfill(
    models: dict[str, str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "index")
    index_images(Request(str(images)), models["plain"], uri, CPU)
    assert list(dry_run(Request(str(images)), models["both"], uri)) == []
    assert "12 vectors of images that stay would be added" in capsys.readouterr().err
    limited, _ = index_images(Request(str(images), limit=1), models["both"], uri, CPU)
    assert (limited.described, vectors(uri)) == (0, {})
    full, _ = index_images(Request(str(images)), models["both"], uri, CPU)
    assert full.described == 12


@pytest.mark.slow
def test_maintenance_keeps_vectors(models: dict[str, str], images: Path, tmp_path: Path) -> None:
    grown = str(tmp_path / "grown")
    index_images(Request(str(images)), models["both"], grown, CPU)
    shutil.copy(sorted(images.iterdir())[0], images / "more.jpg")
    index_images(Request(str(images)), models["both"], grown, CPU)
    before = vectors(grown)
    compact(open_snapshot(grown))
    assert vectors(grown) == before
    gone = sorted(images.iterdir())[1]
    purge(grown, [str(gone)], 0)
    assert vectors(grown) == {k: v for k, v in before.items() if k[1] != gone.name}
    assert verify(open_snapshot(grown)) == []


def test_cache_has_vectors(grown: str, models: dict[str, str], place: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache.duckdb")
    refresh_cache(grown, cache)
    assert vectors(cache) == vectors(grown)
    index_images(Request(place), models["other"], grown, CPU)
    refresh_cache(grown, cache)
    assert vectors(cache) == vectors(grown)
    index_images(Request(place), models["plain"], grown, CPU, drop_descriptors=True)
    refresh_cache(grown, cache)
    assert vectors(cache) == {}
