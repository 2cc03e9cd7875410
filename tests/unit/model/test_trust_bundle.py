"""Tests of bundles from untrusted sources: invalid content is refused before use."""

import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from segrec_batch.common.errors import ModelError, SegrecError
from segrec_batch.descriptors import runtime as describer
from segrec_batch.model.backbones.vgg import VGG16
from segrec_batch.model.bundle import load_model
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.names import is_descriptor_id
from segrec_batch.model.spec import DescriptorSpec, ModelSpec, read_spec
from segrec_batch.sources.strict_json import MAX_DEPTH, check_values, parse_json
from tests.support.builders import small_model
from tests.support.mutations import json_documents, mutated

DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save(str(tmp_path / "model"))
    return tmp_path / "model"


def _values(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return values


DESCRIPTOR = {"name": "pca", "settings": {}, "fingerprint": "0" * 64}
UNUSABLE: dict[str, Any] = {
    "a class that is SQL": {"classes": ["car\"; COPY (SELECT 1) TO '/tmp/x'; --", "person"]},
    "a class that is a path": {"classes": ["../../etc", "person"]},
    "classes that differ by case": {"classes": ["Car", "car"]},
    "classes that are no list": {"classes": "ab"},
    "a class that is a number": {"classes": ["car", 2]},
    "20,000 classes": {"classes": [f"c{i}" for i in range(20_000)]},
    "a class without an SVM": {"classes": ["car", "person", "tree"]},
    "an SVM of no class": {"components": [0, 1, 2, 3]},
    "an SVM of class -1": {"components": [0, 1, 2, -1]},
    "an SVM of class true": {"components": [0, True, 2]},
    "no SVM": {"components": []},
    "no layer": {"taps": []},
    "a layer that is not there": {"taps": ["conv9_9"]},
    "a window of a million cells": {"taps": ["conv1_1@1000001"]},
    "a layer twice": {"taps": ["conv1_1", "conv1_1@1"]},
    "a shape without area": {"shapes": [[0, 64]]},
    "a shape of too many pixels": {"shapes": [[2**20, 2**20]]},
    "a shape of three": {"shapes": [[64, 64, 64]]},
    "a shape that is text": {"shapes": ["64"]},
    "a shape of fractions": {"shapes": [[64.5, 64]]},
    "a mean of two": {"mean": [0.5, 0.5]},
    "a deviation of 0": {"std": [1, 1, 0]},
    "a descriptor that is a path": {"descriptors": [{**DESCRIPTOR, "name": "../../x"}]},
    "a descriptor twice": {"descriptors": [DESCRIPTOR, {**DESCRIPTOR, "name": "PCA"}]},
    "a descriptor of no settings": {"descriptors": [{**DESCRIPTOR, "settings": [1]}]},
    "a descriptor of no fingerprint": {"descriptors": [{**DESCRIPTOR, "fingerprint": "x"}]},
    "a descriptor that is text": {"descriptors": ["pca"]},
    "a fingerprint that is none": {"weights_fingerprint": "../x"},
    "a name of 10,000 letters": {"weights": "x" * 10_000},
    "an id that is a path": {"model_id": "../../../../x"},
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_read_spec_refuses_invalid_values(what: str, folder: Path) -> None:
    (folder / "model.json").write_text(json.dumps({**_values(folder), **UNUSABLE[what]}))
    with pytest.raises(ModelError) as caught:
        read_spec(str(folder))
    text = str(caught.value)
    assert text.startswith(f"{folder}/model.json: ")
    (field,) = UNUSABLE[what]
    assert field[:5] in text
    assert len(text) < 400 + len(str(folder))
    assert "\n" not in text


@pytest.mark.parametrize("text", [
    DEEP, '{"a":' * 100_000, '{"format": NaN}', '{"format": 1e999}', '{"format": -Infinity}',
    '{"format": 1%s}' % ("0" * 5000), '{"format": 3, "format": 3}', "\ufeff{}", '{"a": "\\',
])  # fmt: skip
def test_json_that_is_no_data_is_refused(text: str, folder: Path) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.json"):
        read_spec(str(folder))


def test_a_document_of_many_megabytes_is_not_parsed(folder: Path) -> None:
    (folder / "model.json").write_bytes(b'{"a": "' + b" " * 2**24 + b'"}')
    with pytest.raises(ModelError, match="more than 16,777,216 bytes"):
        read_spec(str(folder))


@pytest.mark.parametrize("name", ["model.json", "head.safetensors"])
def test_a_pipe_in_a_bundle_is_not_waited_for(name: str, folder: Path) -> None:
    import os

    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(str(folder))


def test_a_spec_that_cannot_be_is_not_made_in_python_either() -> None:
    spec = small_model().spec
    for change in (
        {"classes": ("a b", "c")},
        {"classes": ["car", "person"]},
        {"std": (0, 1, 1)},
        {"mean": (10**400, 0, 0)},
        {"std": (1, 1, math.nan)},
    ):
        with pytest.raises(ModelError):
            ModelSpec(**{**vars(spec), **change})
    for arguments in (("a/b", {}, "0" * 64), ("a", {"x": 10**400}, "0" * 64), ("a", {}, "")):
        with pytest.raises(ModelError):
            DescriptorSpec(*arguments)
    assert is_descriptor_id(DescriptorSpec("a", {}, "0" * 64).id)


def test_figures_of_the_training_that_are_no_numbers_become_null(tmp_path: Path) -> None:
    import dataclasses

    model = small_model()
    training = {"iou": {"car": math.nan, "tree": [1, math.inf]}}
    dataclasses.replace(model, spec=dataclasses.replace(model.spec, training=training)).save(
        str(tmp_path)
    )
    assert load_model(str(tmp_path)).spec.training == {"iou": {"car": None, "tree": [1, None]}}


def _header(entries: dict[str, Any], body: int = 0) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def _entry(shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}


BAD_TENSORS = {
    "more than the model has": _header({"svm.bias": _entry([10**12])}),
    "of another name": _header({"svm.other": _entry([3])}, 12),
    "of a type that is a list": _header({"svm.bias": {**_entry([3]), "dtype": ["F32"]}}, 12),
    "of another type": _header({"svm.bias": _entry([3], "F64")}, 24),
    "of a negative size": _header({"svm.bias": _entry([-3])}, 12),
    "without an end": struct.pack("<Q", 2**63) + b"{}",
    "a deep header": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    "no object": _header([]),  # type: ignore[arg-type]
    "one of many": save({"svm.bias": np.zeros(3, np.float32)}),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_load_model_refuses_unexpected_tensors(what: str, folder: Path) -> None:
    (folder / "head.safetensors").write_bytes(BAD_TENSORS[what])
    with pytest.raises(ModelError, match="not complete"):
        load_model(str(folder))


def test_a_file_longer_than_its_tensors_can_be_is_not_read(folder: Path) -> None:
    with (folder / "head.safetensors").open("wb") as file:
        file.truncate(2**40)  # no disk behind it
    start = time.monotonic()
    with pytest.raises(ModelError, match="more than"):
        load_model(str(folder))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("settings", [{"keypoints": "x"}, {"keypoints": 2**62}, {}])
def test_settings_of_a_descriptor_that_cannot_be_are_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = small_model().with_descriptor(
        "bovw", settings, {"words": np.ones((4, 128), np.float32)}
    )
    model.save(str(tmp_path))
    with pytest.raises(ModelError, match="descriptor bovw: ") as caught:
        describer.load(str(tmp_path), ("bovw",), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["ncnn", "torch"])
def test_a_backbone_that_lacks_layers_is_not_run(engine: str) -> None:
    with pytest.raises(ModelError, match=r"the backbone: the bundle is not complete: 2\.weight"):
        load_segmenter(small_model(), EngineChoice(engine, "float32"))


def test_the_shapes_of_the_backbone_are_those_of_torch() -> None:
    state = VGG16.build().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == VGG16.tensors


@given(json_documents())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_json_round_trip(value: Any) -> None:
    check_values(value, 5)
    assert parse_json(json.dumps(value).encode()) == value


def test_depth_is_counted_outside_of_texts() -> None:
    assert parse_json(b'["%s"]' % (b"[" * 1000)) == ["[" * 1000]
    inside = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(inside)
    with pytest.raises(ValueError, match="deeper"):
        parse_json(b"[" + inside + b"]")


@given(data=st.data())
@settings(deadline=None, max_examples=200, derandomize=True)
def test_any_description_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "described"
    folder.mkdir(exist_ok=True)
    model = small_model().with_descriptor("pca", {"dimension": 2}, {})
    text = json.dumps({"model_id": model.model_id, **model.spec.to_json()}).encode()
    (folder / "model.json").write_bytes(data.draw(mutated(text)))
    try:
        spec, _ = read_spec(str(folder))
    except SegrecError:
        return
    assert len(spec.classes) == len({c.lower() for c in spec.classes})


@given(data=st.data())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_any_tensors_are_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "tensors"
    if not folder.exists():
        small_model().save(str(folder))
    whole = (folder / "backbone.safetensors").read_bytes()
    head, body = whole[:200], whole[200:]
    (folder / "backbone.safetensors").write_bytes(data.draw(mutated(head)) + body)
    try:
        load_model(str(folder))
    except SegrecError:
        pass
    finally:
        (folder / "backbone.safetensors").write_bytes(whole)
