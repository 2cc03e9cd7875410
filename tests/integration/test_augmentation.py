"""Tests of augmented vectors in an index that changes, and of the age of their reference set."""

import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import segrec_batch
from segrec_batch.index.snapshot import Snapshot, open_snapshot
from segrec_batch.model.bundle import load_model
from segrec_batch.pipeline.descriptor_setup import change_descriptors, parse_addition
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.reference import ReferenceDrift, log_drifts, reference_drifts
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.pipeline.samples import IndexSamples
from segrec_batch.search.filters import Filters
from segrec_batch.search.recommend import Query, Recommender
from tests.support.rooted import augmented

pytestmark = pytest.mark.slow
CPU = Execution("cpu", batch_size=4)
ADD = "root-pca:dimension=4,augment=2,reference=20"


def fit(snapshot: Snapshot, uri: Path) -> str:
    """Fit root-pca on a snapshot; return the new bundle."""
    model = load_model(snapshot.model_uri)
    model = change_descriptors(model, [parse_addition(ADD)], [], IndexSamples(snapshot, 8))
    model.save(str(uri))
    return str(uri)


def rows(index: str, column: str, table: str) -> dict[str, np.ndarray]:
    with segrec_batch.connect(index) as connection:
        sql = f"SELECT parse_filename(uri), {column} FROM {table}"
        return {name: np.array(v) for name, v in connection.sql(sql).fetchall()}


def hashes(index: str) -> set[str]:
    with segrec_batch.connect(index) as connection:
        rows_of_sql = connection.sql("SELECT content_hash FROM images").fetchall()
    return {hashlib.md5(content.encode()).hexdigest() for (content,) in rows_of_sql}  # noqa: S324


def test_vectors_are_those_of_the_bundle_whatever_changes(
    index: str, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = fit(open_snapshot(index), tmp_path / "model")
    folder, place = tmp_path / "images", str(tmp_path / "index")
    shutil.copytree(scenes / "images" / "place_01", folder)
    first, second, third, *_ = sorted(folder.iterdir())
    index_images(Request(str(folder)), bundle, place, CPU)

    donors = sorted((scenes / "images" / "place_02").iterdir())
    first.unlink()
    shutil.copy(donors[0], second)
    for donor in donors[1:]:
        shutil.copy(donor, folder)
    _, snapshot = index_images(Request(str(folder)), bundle, place, CPU)

    model = load_model(bundle)
    tensors = model.descriptors["root-pca"]
    features, vectors = rows(place, "feature", "images"), rows(place, "vector", "descriptors")
    assert vectors.keys() == features.keys() == {path.name for path in folder.iterdir()}
    names = sorted(features)
    roots = np.sqrt(np.stack([features[name] for name in names]).astype(np.float64))
    plain = (roots - tensors["mean"]) @ tensors["components"].T.astype(np.float64)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    reference_vectors = augmented(tensors["reference.0"].astype(np.float64), plain, 2)
    np.testing.assert_allclose([vectors[name] for name in names], reference_vectors, atol=4e-3)

    fresh = str(tmp_path / "fresh")
    index_images(Request(str(folder)), bundle, fresh, CPU)
    for name, vector in rows(fresh, "vector", "descriptors").items():
        np.testing.assert_allclose(vector, vectors[name], atol=1e-4)
    request = Query(Filters(method="root-pca-cosine"), image=third.read_bytes())
    new = Recommender(place).resolve(request).arguments["query"]
    np.testing.assert_allclose(new, vectors[third.name], atol=5e-3)

    (drift,) = reference_drifts(snapshot)
    stored = {row.tobytes().hex() for row in tensors["reference.hashes"]}
    present = hashes(place)
    assert stored == set(sorted(hashes(index))[:20])
    drawn = set(sorted(present)[:20])
    arguments = "dimension=4,augment=2,reference=20"
    assert drift == ReferenceDrift(
        "root-pca", arguments, 20, len(drawn), len(drawn - stored), len(stored - present)
    )
    assert drift.share == max(drift.added / drift.drawn, drift.gone / 20) >= 0.1
    with caplog.at_level(logging.INFO):
        log_drifts(snapshot)
    (record,) = [r for r in caplog.records if "out of date" in r.message]
    assert record.levelno == logging.WARNING
    assert f"segrec describe --index {place} --output MODEL --add {ADD}" in record.message

    refreshed = fit(snapshot, tmp_path / "refreshed")
    _, snapshot = index_images(Request(str(folder)), refreshed, place, CPU)
    (drift,) = reference_drifts(snapshot)
    assert (drift.added, drift.gone) == (0, 0)
    assert not np.allclose(rows(place, "vector", "descriptors")[third.name], vectors[third.name])
