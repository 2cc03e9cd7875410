"""Tests of placement: engine, actors, threads and batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrec_batch.common.errors import EngineError
from segrec_batch.distributed.placement import Work, choose_cluster_engine, place_model
from segrec_batch.distributed.resources import Resources, find_resources
from segrec_batch.index.history import history
from segrec_batch.model.engine_choice import LONG_RUN
from segrec_batch.model.engines import EngineChoice
from tests.support.builders import quick

NCNN, TORCH = EngineChoice("ncnn", "float32"), EngineChoice("torch", "float32")
MILLION = Work(1_000_000, 720 * 544)


def node(cores: int, nodes: int = 1) -> Resources:
    """Return the resources of nodes with a number of cores."""
    return Resources("cpu", nodes, max(cores - 1, 0.4), cores)


def test_place_model_small_run_has_one_actor() -> None:
    placement = place_model(node(16), NCNN, Work(6, 224 * 224), 32, memory=1e12)
    assert (placement.resources.actors, placement.resources.threads) == (1, 16)
    assert placement.resources.cpus == 15
    assert placement.batch_size == 3, "two batches, so that decoding overlaps with the model"


def test_place_model_large_run_has_actors_of_eight_threads() -> None:
    placement = place_model(node(64, 3), NCNN, MILLION, 32, memory=1e12)
    assert (placement.resources.actors, placement.resources.threads) == (24, 8)
    assert placement.batch_size == 32


def test_place_model_torch_has_one_actor_per_node() -> None:
    assert place_model(node(64, 3), TORCH, MILLION, 32, memory=1e12).resources == node(64, 3)
    gpus = Resources("cuda", 4, 0, None)
    on_gpus = place_model(gpus, EngineChoice("torch", "bfloat16", "cuda"), MILLION, 32)
    assert (on_gpus.resources, on_gpus.batch_size) == (gpus, 32)


def test_place_model_threads_fit_into_memory() -> None:
    placement = place_model(node(8), NCNN, MILLION, 32, memory=3.5 * 2**30)
    assert (placement.resources.actors, placement.resources.threads) == (1, 3)
    tiny = place_model(node(8), NCNN, MILLION, 32, memory=0)
    assert (tiny.resources.actors, tiny.resources.threads) == (1, 1)


@given(
    cores=st.integers(1, 300),
    nodes=st.integers(1, 20),
    images=st.integers(1, 10**9),
    gigabytes=st.floats(0, 4000),
)
@quick
def test_place_model_leaves_cpus_for_tasks(
    cores: int, nodes: int, images: int, gigabytes: float
) -> None:
    before = node(cores, nodes)
    resources = place_model(before, NCNN, Work(images, 224 * 224), 32, gigabytes * 1e9).resources
    assert resources.actors % nodes == 0
    actors = resources.actors // nodes
    assert 1 <= actors * (resources.threads or 0) <= cores
    assert actors * resources.cpus <= before.cpus
    assert actors * resources.cpus <= cores - 0.5, "a task finds room"
    assert resources.cpus != 0.5, "with the CPUs of a task, Ray would decode inside the actor"


def test_choose_cluster_engine_asks_the_nodes(ray_cluster: None) -> None:
    resources = find_resources("cpu")
    short = choose_cluster_engine("auto", "auto", resources, Work(10, 224 * 224))
    assert "by the processor's features" in short.reason
    long = choose_cluster_engine("auto", "auto", resources, Work(LONG_RUN, 1))
    assert long.reason.startswith("measured on this machine, images/s of a thread")
    assert choose_cluster_engine("torch", "float32", resources, MILLION).reason == "as requested"
    emulated = choose_cluster_engine("auto", "bfloat16", resources, Work(1, 1))
    assert (emulated.engine, emulated.precision) == ("torch", "bfloat16")
    with pytest.raises(EngineError, match="--engine ncnn computes in float32"):
        choose_cluster_engine("ncnn", "bfloat16", resources, MILLION)


def test_commit_stores_the_engine(index: str) -> None:
    summary = history(index)[0].info["segrec"]
    assert summary["engine"]["engine"] in ("ncnn", "torch")
    assert summary["engine"]["precision"] in ("float32", "bfloat16")
    assert summary["engine"]["device"] == "cpu"
    assert summary["engine"]["reason"]
