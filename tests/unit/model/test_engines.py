"""Tests of the choice of engines, and of their agreement within the stated tolerances."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import EngineError
from segrec_batch.common.host import Processor
from segrec_batch.images.decode import fit
from segrec_batch.labels.labelled import load_classes, pair_images
from segrec_batch.model import class_maps, engine_choice, engines, pooling
from segrec_batch.model.backbones import Tap
from segrec_batch.model.bundle import Model
from segrec_batch.model.engine_choice import (
    LONG_RUN,
    choose_engine,
    choose_fastest,
    list_candidates,
)
from segrec_batch.model.engines import (
    Candidate,
    EngineChoice,
    explain_missing_engine,
    load_feature_maps,
    load_segmenter,
    measure_rate,
)
from segrec_batch.model.head import LinearHead, resize
from segrec_batch.model.ncnn_network import Head, NcnnNetwork
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.model.weights import load_weights
from segrec_batch.training.sampling import Sampling
from segrec_batch.training.trainer import Settings, Trainer, train
from tests.support.builders import quick, random_backbone, random_weights, smooth_batch, tiny_model
from tests.support.commands import exit_code

DATA = Path(__file__).parents[4] / "shared" / "data"
NCNN, TORCH, ROUGH = ("ncnn", "float32"), ("torch", "float32"), ("torch", "bfloat16")
ZEN3 = Processor("AMD EPYC 7B13", "x86_64", frozenset({"avx2", "fma"}))
ZEN4 = Processor("AMD EPYC 9B14", "x86_64", frozenset({"avx2", "avx512f", "avx512_bf16"}))
SAPPHIRE = Processor("Xeon 8481C", "x86_64", ZEN4.features | {"amx_bf16", "amx_tile"})
GRAVITON2 = Processor("Neoverse N1", "aarch64", frozenset({"asimd", "asimdhp"}))
GRAVITON3 = Processor("Neoverse V1", "aarch64", frozenset({"asimd", "sve", "bf16"}))


@pytest.fixture(autouse=True)
def uncapped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ZEN3, [NCNN, TORCH]),
        (ZEN4, [NCNN, ROUGH, TORCH]),
        (SAPPHIRE, [ROUGH, NCNN, TORCH]),
        (GRAVITON2, [NCNN, TORCH]),
        (GRAVITON3, [NCNN, ROUGH, TORCH]),
    ],
    ids=lambda x: x.name if isinstance(x, Processor) else "",
)
def test_candidates_are_native(processor: Processor, expected: list[Candidate]) -> None:
    assert list_candidates(processor) == expected


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE"])
def test_capped_processor_has_no_bfloat16(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert list_candidates(SAPPHIRE) == [NCNN, TORCH]


def test_auto_takes_the_first_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    for processor in (ZEN3, ZEN4, SAPPHIRE, GRAVITON3):
        monkeypatch.setattr(engine_choice, "read_processor", lambda processor=processor: processor)
        choice = choose_engine()
        assert (choice.engine, choice.precision) == list_candidates(processor)[0]
        assert processor.name in choice.reason
        assert choice.warning is None
        exact = choose_engine(precision="float32")
        assert (exact.engine, exact.precision) == NCNN
        torch_ = choose_engine(engine="torch")
        assert torch_.precision == ("bfloat16" if processor.has_native_bf16 else "float32")


def test_auto_goes_without_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "read_processor", lambda: ZEN3)
    monkeypatch.setitem(sys.modules, "ncnn", None)  # as Python marks what cannot be imported
    why = "the package ncnn is not installed; install it with: pip install ncnn"
    assert explain_missing_engine("ncnn") == why
    choice = choose_engine()
    assert (choice.engine, choice.precision) == TORCH
    with pytest.raises(EngineError, match="--engine ncnn: the package ncnn is not installed"):
        choose_engine("ncnn")


def test_auto_goes_without_an_engine_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_choice, "read_processor", lambda: ZEN3)
    monkeypatch.delitem(sys.modules, "ncnn", raising=False)
    (tmp_path / "ncnn.py").write_text('raise ImportError("GLIBC_2.99 not found")')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        explain_missing_engine("ncnn")
        == "the package ncnn cannot be imported: GLIBC_2.99 not found"
    )
    choice = choose_engine()
    assert (choice.engine, choice.precision) == TORCH


def test_emulated_bfloat16_is_done_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "read_processor", lambda: ZEN3)
    for engine in ("auto", "torch"):
        choice = choose_engine(engine, "bfloat16")
        assert (choice.engine, choice.precision) == ROUGH
        assert choice.warning is not None
        assert "9 times slower" in choice.warning
        assert ZEN3.name in choice.warning


@pytest.mark.parametrize(
    ("engine", "precision", "device", "message"),
    [
        ("tensorrt", "auto", "cpu", "there is no engine tensorrt; there are ncnn, torch"),
        ("auto", "float16", "cpu", "--precision float16: there are auto, float32, bfloat16"),
        ("ncnn", "bfloat16", "cpu", "--engine ncnn computes in float32"),
        ("ncnn", "auto", "cuda", "--engine ncnn runs on CPUs; say --engine torch"),
    ],
)
def test_choose_engine_refuses_unknown_names(
    engine: str, precision: str, device: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        choose_engine(engine, precision, device)


def test_gpus_compute_in_bfloat16_by_default() -> None:
    assert str(choose_engine(device="cuda")) == "torch, bfloat16, on cuda"
    assert choose_engine(precision="float32", device="cuda:1").precision == "float32"


def test_long_work_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "read_processor", lambda: ZEN3)
    choice = choose_engine(work=float(LONG_RUN))
    assert choice.reason.startswith("measured on this machine, images/s")
    assert "ncnn float32" in choice.reason
    assert "torch float32" in choice.reason


def test_fastest_counts_only_what_all_nodes_have() -> None:
    fast = {NCNN: 4.0, ROUGH: 10.0, TORCH: 2.0}
    slow = {NCNN: 3.0, TORCH: 1.0}
    assert choose_fastest([fast]).precision == "bfloat16"
    choice = choose_fastest([fast, slow])
    assert (choice.engine, choice.precision) == NCNN
    assert "2 nodes" in choice.reason
    assert "ncnn float32 7.0" in choice.reason


@pytest.mark.parametrize("candidate", [NCNN, TORCH], ids=" ".join)
def test_rates_are_measured(candidate: Candidate) -> None:
    assert measure_rate(*candidate, shape=(32, 32), seconds=0.05) > 0


def test_rate_counts_the_work_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ThreadPoolExecutor(1)

    def burn(_: object) -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    def load(*_: object, **__: object) -> Callable[[object], object]:
        return lambda batch: list(pool.map(burn, batch))

    monkeypatch.setattr(engines, "load_feature_maps", load)
    assert 10 < measure_rate("ncnn", "float32", seconds=0.2) < 21


def test_measuring_leaves_torch_its_threads() -> None:
    before = torch.get_num_threads()
    measure_rate("torch", "float32", threads=before + 1, shape=(32, 32), seconds=0.01)
    assert torch.get_num_threads() == before


def test_training_runs_images_at_the_same_time(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls of the network wait for one another; one after the other, they would give up."""
    barrier, call = threading.Barrier(2, timeout=30), NcnnNetwork.__call__
    first = iter([True, True])

    def wait(self: NcnnNetwork, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        if next(first, False):
            barrier.wait()
        return call(self, image)

    monkeypatch.setattr(NcnnNetwork, "__call__", wait)
    monkeypatch.setattr("segrec_batch.training.trainer.usable_cores", lambda: 2)
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))
    settings = Settings(
        layers=("conv5_3",),
        c=(1.0,),
        shapes=((64, 64),),
        sampling=Sampling(positions=20),
        engine=EngineChoice(*NCNN),
    )
    Trainer(images, load_classes(str(scenes / "classes.json")), random_weights(), settings)
    assert not barrier.broken


def test_unknown_engine_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--images", "i", "--model", "m", "--index", "x", "--engine", "tensorrt"]
    assert exit_code("jobs/index.py", *given) == 2
    assert "choose from auto, ncnn, torch" in capsys.readouterr().err.replace("'", "")


# agreement

MAPS = ["conv1_1", "conv3_3", "conv4_2", "conv4_3", "conv5_3"]


@pytest.mark.parametrize("shape", [(64, 96), (32, 32), (50, 70), (33, 47)])
def test_maps_of_ncnn_are_those_of_torch(shape: tuple[int, int]) -> None:
    taps = tuple(map(Tap, MAPS))
    exact, actual = (
        load_feature_maps(random_weights().arrays, taps, EngineChoice(*c))(smooth_batch(2, *shape))
        for c in (TORCH, NCNN)
    )
    assert set(actual) == set(MAPS)
    for name, expected in exact.items():
        assert actual[name].shape == tuple(expected.shape)
        np.testing.assert_allclose(
            actual[name], expected, rtol=0, atol=1e-4 * float(expected.max())
        )


def test_network_for_few_images_computes_the_same() -> None:
    image = np.random.default_rng(0).standard_normal((3, 64, 96)).astype(np.float32)
    arrays = random_weights().arrays
    networks = (NcnnNetwork(arrays, ["conv5_3"], few=few) for few in (False, True))
    many, few = (network(image)["conv5_3"] for network in networks)
    np.testing.assert_allclose(few, many, rtol=0, atol=1e-5 * float(many.max()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    image = np.random.default_rng(0).standard_normal((3, 64, 96)).astype(np.float32)
    arrays = random_weights().arrays
    networks = (NcnnNetwork(arrays, ["conv5_3"], threads=t) for t in (1, threads))
    one, other = (network(image)["conv5_3"] for network in networks)
    np.testing.assert_array_equal(one, other)


def test_results_of_ncnn_do_not_depend_on_the_batch() -> None:
    segmenter = load_segmenter(tiny_model(), EngineChoice(*NCNN), 3, batches=True)
    pixels = smooth_batch(4)
    together = segmenter(pixels, [(70, 100)] * 4)
    for i in range(4):
        alone = segmenter(pixels[i : i + 1], [(70, 100)])
        for name in ("labels", "common", "counts", "feature", "region_features", "sign_bits"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])
        np.testing.assert_array_equal(alone.masks[0], together.masks[i])


@pytest.mark.parametrize(
    "taps",
    [
        ("conv5_3",),
        ("conv3_3",),
        ("conv5_3@11", "conv3_3", "conv4_3@5", "conv4_3", "conv5_3"),
        ("conv3_1", "conv3_3@3", "conv3_3"),
        ("conv4_3@3",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("shape", [(80, 112), (16, 64), (64, 16)])
def test_head_of_ncnn_decides_as_that_of_torch(
    taps: tuple[str, ...], members: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    parsed = [Tap.parse(text) for text in taps]
    weights = {
        tap: rng.standard_normal((members, tap.source.channels)).astype(np.float32)
        for tap in parsed
    }
    bias = rng.standard_normal(members).astype(np.float32)
    image = rng.standard_normal((3, *shape)).astype(np.float32)
    network = NcnnNetwork(random_weights().arrays, ["conv5_3"], Head(weights, bias))
    actual = network(image)
    layers = tuple(dict.fromkeys([*(tap.layer for tap in parsed), "conv5_3"]))
    maps = random_backbone(layers)(torch.from_numpy(image)[None])
    tensors = {tap: torch.from_numpy(w) for tap, w in weights.items()}
    expected = LinearHead(tensors, torch.from_numpy(bias), range(members)).decision(maps)[0]
    assert actual["scores"].shape == tuple(expected.shape)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(actual["scores"], expected, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(
        actual["conv5_3"], maps["conv5_3"][0], rtol=0, atol=1e-4 * float(maps["conv5_3"].max())
    )


@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 90)] * 2))
@quick
def test_resizing_is_that_of_torch(own: tuple[int, int], new: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).standard_normal((3, *own)).astype(np.float32)
    actual = class_maps.resize(scores, new)
    expected = resize(torch.from_numpy(scores)[None], new)[0].numpy()
    # torch rounds a place to float32: 40 cells · 2⁻²³, times differences of up to 8 between cells
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4e-5)
    best = class_maps.class_map(scores, new)
    margin = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2]
    assert (best == expected.argmax(axis=0))[margin > 1e-4].all()


def test_of_equal_scores_the_first_class_wins() -> None:
    assert (class_maps.class_map(np.ones((3, 2, 2), np.float32), (4, 4)) == 0).all()


@given(st.integers(0, 2**31), st.integers(1, 5))
@quick
def test_pooling_is_that_of_torch(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.random((16, 3, 5)).astype(np.float32)
    labels = rng.integers(0, classes, (3, 5)).astype(np.uint8)
    counts, means = class_maps.class_means(maps, labels, classes)
    expected = pooling.class_means(
        torch.from_numpy(maps)[None], torch.from_numpy(labels)[None], classes
    )
    np.testing.assert_array_equal(counts, expected[0][0])
    np.testing.assert_allclose(means, expected[1][0], rtol=1e-5, atol=1e-7)


@given(st.integers(0, 2**31), st.sampled_from([512, 64, 100, 5]))
@quick
def test_sign_bits_are_those_of_torch(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    feature = rng.random(length).astype(np.float32)
    centre = (rng.standard_normal(length) / 100).astype(np.float32)
    rotation = pooling.random_rotation(length, seed % 7).numpy()
    actual = class_maps.sign_bits(feature, centre, rotation)
    expected = pooling.sign_bits(
        torch.from_numpy(feature)[None], torch.from_numpy(centre), torch.from_numpy(rotation)
    )[0]
    assert actual.shape == (-(-length // 64),)
    apart = np.unpackbits((actual ^ expected.numpy()).view(np.uint8)).sum()
    assert apart <= 1  # a projection within rounding of 0


def agree(exact: Segmentation, result: Segmentation) -> tuple[float, float, float]:
    """Share of equal cells, largest difference of a coverage, smallest Pearson of two features."""
    shift = np.abs(exact.counts - result.counts).max() / exact.labels[0].size
    pearson = min(
        np.corrcoef(a, b)[0, 1] for a, b in zip(exact.feature, result.feature, strict=True)
    )
    return float((exact.labels == result.labels).mean()), float(shift), float(pearson)


@pytest.mark.parametrize("candidate", [NCNN, ROUGH], ids=" ".join)
def test_engines_agree_on_random_weights(candidate: Candidate) -> None:
    pixels = smooth_batch(8)
    exact, result = (
        load_segmenter(tiny_model(), EngineChoice(*c))(pixels) for c in (TORCH, candidate)
    )
    same, shift, pearson = agree(exact, result)
    assert same >= (0.95 if candidate == ROUGH else 0.99)
    assert shift <= 0.1
    assert pearson >= 0.999


@pytest.fixture(scope="module")
def street_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Trained weights, default layers, default input size, fitted on 46 real street scenes."""
    folder = tmp_path_factory.mktemp("streets")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
        for source in sorted((DATA / "camvid/train" / kind).iterdir())[::8]:
            (folder / kind / source.name).symlink_to(source)
    classes = folder / "classes.json"
    classes.write_text('{"car": [8], "person": [9], "tree": [5], "ignore": [11]}')
    images = pair_images(str(folder / "images"), str(folder / "masks"))
    settings = Settings(c=(1.0,), sampling=Sampling(positions=600))
    weights = load_weights(str(DATA / "vgg16_imagenet_fp16.pth"))
    return train(images, load_classes(str(classes)), weights, settings)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the reference data next to the checkout")
@pytest.mark.parametrize("candidate", [NCNN, ROUGH], ids=" ".join)
def test_engines_are_within_tolerance_on_real_images(
    candidate: Candidate, street_model: Model
) -> None:
    """See docs/segmentation.md; benchmarks.engines.precision takes more images."""
    exact, other = (load_segmenter(street_model, EngineChoice(*c)) for c in (TORCH, candidate))
    result = [
        agree(exact(pixels), other(pixels))
        for path in sorted((DATA / "camvid/val/images").iterdir())[::25]
        for pixels in [fit(Image.open(path), street_model.spec.shapes)[None]]
    ]
    same, shifts, pearsons = zip(*result, strict=True)
    assert np.mean(same) >= 0.999
    assert max(shifts) <= 0.002
    assert min(pearsons) >= 0.9999
