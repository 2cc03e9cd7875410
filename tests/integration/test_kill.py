"""Processes are killed at random moments: nothing is lost, doubled, half there or done again.

With the changes a descriptor is switched on: images that stay get their vectors in the same run.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

import segrec_batch
from segrec_batch.common.errors import IndexStateError
from segrec_batch.index import snapshot as store
from segrec_batch.index import staging
from segrec_batch.index.parts import read_file
from segrec_batch.index.schema import TABLES
from segrec_batch.model.spec import read_spec
from tests.support.builders import smooth_pixels, tiny_model
from tests.support.processes import victims

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRIALS = 6  # seeds: each scenario and each victim at least once; the rest is test_chaos.py
IMAGES = 40
OF_THE_RUN = {"run_id", "indexed_at", "failed_at"}  # columns that tell two runs apart
VICTIMS = ("driver", "actor", "task worker", "decoder", "raylet")
SCENARIOS = ("fresh", "changes", "rebuild")

HALF_IMAGES = """
    WITH parts AS (SELECT image_id, sum(coverage) AS whole FROM regions GROUP BY ALL)
    SELECT
        (SELECT count(*) FROM images LEFT JOIN parts USING (image_id)
         WHERE whole IS NULL OR abs(whole - 1) > 1e-5) AS half,
        (SELECT count(*) FROM parts ANTI JOIN images USING (image_id)) AS without_image,
        (SELECT count(*) - count(DISTINCT uri) FROM
         (SELECT uri FROM images UNION ALL SELECT uri FROM failures)) AS twice,
        (SELECT greatest(count(DISTINCT model_id) - 1, 0) FROM images) AS models
"""


@dataclass
class Stage:
    """Parts that trials share: a cluster of three nodes, folders, models."""

    cluster: Cluster
    nodes: list[Any]
    folder: Path
    models: tuple[str, str, str]  # for `fresh`, for `rebuild`, with a descriptor for `changes`
    references: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    def command(self, index: Path, images: Path, *options: str) -> list[str]:
        program = str(Path(__file__).parents[1] / "support" / "counted_index.py")
        model = self.models["--rebuild" in options]
        given = {"--images": images, "--model": model, "--index": index, "--device": "cpu"}
        given |= {"--batch-size": 2, "--commit-seconds": 0.2}
        return [sys.executable, program, *(str(x) for p in given.items() for x in p), *options]

    def start(self, *arguments: Any, counts: Path) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "RAY_ADDRESS": self.cluster.address, "SEGREC_COUNTS": str(counts)
        }  # fmt: skip
        log = (counts.parent / "log").open("ab")
        return subprocess.Popen(
            self.command(*arguments), env=environment, stdout=log, stderr=log, cwd=ROOT
        )

    def run(self, *arguments: Any, counts: Path) -> None:
        assert self.start(*arguments, counts=counts).wait(300) == 0, self.log(counts)

    def log(self, counts: Path) -> str:
        return (counts.parent / "log").read_text()[-5000:]


def write_images(folder: Path) -> None:
    folder.mkdir()
    for i in range(IMAGES):
        Image.fromarray(smooth_pixels(48, 64, seed=i)).save(folder / f"{i:02}.png")
    (folder / "broken.jpg").write_bytes(b"no image")


def change_images(folder: Path) -> None:
    """Some change, some go, some come, one moves, one is touched, the broken one is mended."""
    paths = sorted(folder.glob("*.png"))
    for i, path in enumerate(paths[:6]):
        Image.fromarray(smooth_pixels(64, 48, seed=100 + i)).save(path)
    for path in paths[6:10]:
        path.unlink()
    paths[10].rename(folder / "moved.png")
    os.utime(paths[11], (2e9, 2e9))
    for i in range(8):
        Image.fromarray(smooth_pixels(48, 64, seed=200 + i)).save(folder / f"new{i}.png")
    shutil.copy(paths[12], folder / "broken.jpg")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("kill")
    model = tiny_model(taps=("conv3_3", "conv5_3"))
    other = replace(model, spec=replace(model.spec, minmax=False))
    described = model.with_descriptor("hog", {"cell": 8, "block": 2, "bins": 9}, {})
    models = (str(folder / "model"), str(folder / "other"), str(folder / "described"))
    for bundle, uri in zip((model, other, described), models, strict=True):
        bundle.save(uri)
    write_images(folder / "before")
    shutil.copytree(folder / "before", folder / "after")
    change_images(folder / "after")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        yield Stage(cluster, nodes, folder, models)
    finally:
        cluster.shutdown()


def content(index: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of a snapshot, less what tells two runs apart, in an order of their own."""
    connection = segrec_batch.connect(index)
    tables = {name: connection.sql(f"SELECT * FROM {name}").to_arrow_table() for name in TABLES}
    return {name: comparable(table) for name, table in tables.items()}


def comparable(table: pa.Table) -> list[dict[str, Any]]:
    kept = table.select([n for n in table.column_names if n not in OF_THE_RUN])
    return sorted(kept.to_pylist(), key=lambda row: (row["uri"], row.get("class", "")))


def assert_alike(
    actual: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]
) -> None:
    for table in TABLES:
        names = [[(r["uri"], r.get("class")) for r in rows[table]] for rows in (actual, expected)]
        assert names[0] == names[1]
        for a, b in zip(actual[table], expected[table], strict=True):
            assert a.keys() == b.keys()
            for name, value in a.items():
                if name in ("feature", "inv_norm"):  # a batch of other images rounds otherwise
                    np.testing.assert_allclose(value, b[name], rtol=1e-4, atol=1e-5)
                else:
                    assert value == b[name], (table, name, a["uri"])


class Reader(threading.Thread):
    """Someone who asks the index all the time; `wrong` is what must never be seen."""

    def __init__(self, index: str) -> None:
        super().__init__(daemon=True)
        self.index = index
        self.answers = 0
        self.wrong: list[object] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(1):
            try:
                connection = segrec_batch.connect(self.index)
            except IndexStateError:  # not there yet
                continue
            (row,) = connection.sql(HALF_IMAGES).fetchall()
            self.answers += 1
            if any(row):
                self.wrong.append(row)


def kill_one(stage: Stage, kind: str, dice: random.Random) -> None:
    if kind == "raylet":
        node = stage.nodes.pop(dice.randrange(len(stage.nodes)))
        stage.cluster.remove_node(node, allow_graceful=False)
        stage.nodes.append(stage.cluster.add_node(num_cpus=1))
        return
    try:
        result = victims(stage.nodes, kind)
        if result:
            dice.choice(result).kill()
    except psutil.NoSuchProcess:
        pass  # gone by itself


def wait_for_moment(
    run: subprocess.Popen[bytes], counts: Path, images: int, seconds: float
) -> None:
    """Until so many images have been seen, and then some; or until the run has ended."""
    while run.poll() is None and len(seen(counts)) < images:
        time.sleep(0.02)
    time.sleep(seconds)


def seen(counts: Path) -> list[str]:
    return counts.read_text().splitlines() if counts.exists() else []


def committed(scenario: str, stage: Stage, index: str) -> set[str]:
    """Sources that runs since `prepare` have published or, of a rebuild, staged."""
    if not store.exists(index):
        return set()
    if scenario == "rebuild":
        _, model_id = read_spec(stage.models[1])
        files = staging.read_staged_files(index, model_id)[0]
        tables = [read_file(index, f)["uri"].to_pylist() for f in files if f.table == "images"]
        return {uri for uris in tables for uri in uris}
    first = runs(str(stage.folder / "reference-fresh")) if scenario == "changes" else set()
    return {uri for run, uri in published(index) if run not in first}


def published(index: str) -> list[tuple[str, str]]:
    return segrec_batch.connect(index).sql("SELECT run_id, uri FROM images").fetchall()


def runs(index: str) -> set[str]:
    return {run for run, _ in published(index)}


def arguments_of(scenario: str, stage: Stage, index: Path) -> tuple[Any, ...]:
    images = stage.folder / "images"
    more = {"rebuild": ("--rebuild",), "changes": ("--model", stage.models[2])}
    return (index, images, *more.get(scenario, ()))


def prepare(scenario: str, stage: Stage, index: Path) -> tuple[Any, ...]:
    """Images and index as they are before the scenario's run; what that run is given."""
    if scenario != "fresh":
        reference("fresh", stage)  # its index is what this run changes
    images = stage.folder / "images"  # always there, since URIs are part of the rows
    shutil.rmtree(images, ignore_errors=True)
    shutil.copytree(stage.folder / "before", images)
    if scenario != "fresh":
        shutil.copytree(stage.folder / "reference-fresh", index)
        shutil.rmtree(images)
        shutil.copytree(stage.folder / "after", images)
    return arguments_of(scenario, stage, index)


def reference(scenario: str, stage: Stage) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run that nobody disturbed."""
    if scenario not in stage.references:
        index = stage.folder / f"reference-{scenario}"
        given = prepare(scenario, stage, index)
        counts = stage.folder / f"counts-{scenario}"
        stage.run(*given, counts=counts)
        assert len(seen(counts)) == len(set(seen(counts))), "each image is seen once"
        stage.references[scenario] = content(str(index))
    return stage.references[scenario]


@pytest.mark.parametrize("seed", range(TRIALS))
def test_killed_run_recovers(stage: Stage, seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)  # noqa: S311
    scenario, victim = SCENARIOS[seed % 3], VICTIMS[seed % 5]
    expected = reference(scenario, stage)
    index, counts = tmp_path / "index", tmp_path / "counts"
    given = prepare(scenario, stage, index)
    reader = Reader(str(index))
    reader.start()
    try:
        for _ in range(2 * (victim == "driver")):
            run = stage.start(*given, counts=counts)
            wait_for_moment(run, counts, dice.randrange(-5, IMAGES), dice.uniform(0, 1))
            run.kill()
            run.wait()
            before, done = seen(counts), committed(scenario, stage, str(index))
        run = stage.start(*given, counts=counts)
        if victim != "driver":
            wait_for_moment(run, counts, dice.randrange(-5, IMAGES), dice.uniform(0, 1))
            kill_one(stage, victim, dice)
        assert run.wait(300) == 0, stage.log(counts)
        if victim == "driver":
            again = set(seen(counts)[len(before) :])
            assert not again & done, "what was committed is not computed again"
    finally:
        reader.done.set()
        reader.join()
    assert_alike(content(str(index)), expected)
    assert not reader.wrong
    assert reader.answers or scenario == "fresh"
