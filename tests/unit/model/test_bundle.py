"""Tests of bundles: round trips, identities, and checks on reading."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones import BACKBONES
from segrec_batch.model.backbones.vgg import VGG16
from segrec_batch.model.bundle import Array, Model, load_model
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.names import check_class_names
from segrec_batch.model.spec import FORMAT, DescriptorSpec, ModelSpec
from tests.support.builders import quick, small_model, smooth_batch, tiny_model

FILES = ("model.json", "head.safetensors", "backbone.safetensors")
CHANGES: dict[str, Any] = {
    "descriptors": (DescriptorSpec("texture", {}, "0" * 64),),  # another value of each field
    "classes": ("person", "car"),
    "taps": ("conv1_2",),
    "components": (0, 2, 1),
    "shapes": ((64, 64), (32, 96)),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "weights": "imagenet",
    "weights_fingerprint": "0" * 64,
    "minmax": False,
    "backbone": "vgg_other",
    "training": {"images": 2},
}
PROVENANCE = {"training", "weights"}  # no output depends on them
APART = {*PROVENANCE, "descriptors"}  # which have identities of their own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save(str(tmp_path / "model"))
    return tmp_path / "model"


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


def test_a_saved_model_comes_back_equal(folder: Path) -> None:
    model, again = small_model(), load_model(str(folder))
    assert again.spec == model.spec
    assert again.model_id == model.model_id
    assert _same(dict(again.head), dict(model.head))
    assert _same(dict(again.backbone), dict(model.backbone))


@pytest.mark.parametrize("engine", ["ncnn", "torch"])
def test_a_saved_model_computes_the_same(engine: str, tmp_path: Path) -> None:
    model, images = tiny_model(), smooth_batch(2)
    model.save(str(tmp_path))
    sizes = [(100, 150)] * 2
    choice = EngineChoice(engine, "float32")
    a, b = (load_segmenter(m, choice)(images, sizes) for m in (model, load_model(str(tmp_path))))
    np.testing.assert_array_equal(a.masks, b.masks)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.feature, b.feature, rtol=0, atol=1e-6)


def test_a_bundle_holds_json_and_safetensors_only(folder: Path) -> None:
    assert {p.name for p in folder.rglob("*")} == set(FILES)
    stated = json.loads((folder / "model.json").read_text())
    assert stated["model_id"] == small_model().model_id
    assert stated["format"] == FORMAT


def test_the_id_is_16_hex_digits_and_repeats() -> None:
    assert small_model().model_id == small_model().model_id
    assert len(small_model().model_id) == 16
    int(small_model().model_id, 16)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ModelSpec)])
def test_the_id_covers_each_field_that_changes_an_output(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "vgg_other", dataclasses.replace(VGG16, name="vgg_other"))
    model = small_model()
    spec = dataclasses.replace(model.spec, **{field: CHANGES[field]})
    changed = Model(spec, model.head, model.backbone).model_id != model.model_id
    assert changed == (field not in APART)


@pytest.mark.parametrize("name", list(small_model().head))
def test_the_id_covers_each_tensor_of_the_head(name: str) -> None:
    model = small_model()
    tensor = model.head[name].copy()
    tensor.reshape(-1)[-1] += 1e-6
    head = {**model.head, name: tensor}
    assert Model(model.spec, head, model.backbone).model_id != model.model_id


def _described(settings: dict[str, object], value: float) -> Model:
    return small_model().with_descriptor("pca", settings, {"mean": np.full(3, value, np.float32)})


def test_a_descriptor_has_an_identity_of_its_own() -> None:
    plain, one = small_model(), _described({"dimension": 2}, 0.5)
    others = [_described({"dimension": 3}, 0.5), _described({"dimension": 2}, 0.6)]
    assert plain.bundle_id == plain.model_id == one.model_id
    assert len({plain.bundle_id, one.bundle_id, *(m.bundle_id for m in others)}) == 4
    assert _described({"dimension": 2}, 0.5).bundle_id == one.bundle_id
    assert one.spec.descriptors[0].id.startswith("pca-")


def test_a_descriptor_takes_the_place_of_another_of_its_name() -> None:
    again = _described({"dimension": 2}, 0.5).with_descriptor("pca", {"dimension": 3}, {})
    assert [d.settings for d in again.spec.descriptors] == [{"dimension": 3}]
    both = again.with_descriptor("hog", {}, {})
    assert [d.name for d in both.spec.descriptors] == ["hog", "pca"]
    assert both.bundle_id == small_model().with_descriptor("hog", {}, {}).with_descriptor(
        "pca", {"dimension": 3}, {}
    ).bundle_id  # fmt: skip


def test_descriptors_are_saved_and_checked(tmp_path: Path) -> None:
    model = _described({"dimension": 2}, 0.5).with_descriptor("hog", {}, {})
    model.save(str(tmp_path))
    back = load_model(str(tmp_path))
    assert back.spec == model.spec
    assert back.bundle_id == model.bundle_id
    assert _same(dict(back.descriptors["pca"]), dict(model.descriptors["pca"]))
    assert back.descriptors["hog"] == {}
    save_file({"mean": np.zeros(3, np.float32)}, tmp_path / "descriptor-pca.safetensors")
    with pytest.raises(ModelError, match="not those"):
        load_model(str(tmp_path))
    (tmp_path / "descriptor-pca.safetensors").unlink()
    with pytest.raises(ModelError, match="not complete"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["head.safetensors", "backbone.safetensors"])
def test_tensors_of_another_model_are_refused(name: str, folder: Path) -> None:
    model = small_model()
    tensors = model.head if name.startswith("head") else model.backbone
    first, *rest = tensors
    save_file({first: tensors[first] + 1, **{k: tensors[k] for k in rest}}, folder / name)
    with pytest.raises(ModelError, match="not those"):
        load_model(str(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=str(folder)):
        load_model(str(folder))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="segrec train"):
        load_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", FILES[1:])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@quick
def test_a_flipped_byte_is_noticed(
    name: str, where: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, model = tmp_path_factory.mktemp("model"), small_model()
    model.save(str(folder))
    data = bytearray((folder / name).read_bytes())
    data[int(where * len(data))] ^= flip
    (folder / name).write_bytes(data)
    try:
        again = load_model(str(folder))
    except ModelError:
        return
    assert _same(dict(again.head), dict(model.head)), "white space of the header, at most"
    assert _same(dict(again.backbone), dict(model.backbone))


@pytest.mark.parametrize("name", FILES[1:])
def test_a_number_type_that_flipped_is_noticed(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data.replace(b'"F32"', b'"I32"'))  # same shapes, same bytes
    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(name: str, share: float, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("number", [None, 0, FORMAT + 1, str(FORMAT)])
def test_another_format_is_refused(number: object, folder: Path) -> None:
    values = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**values, "format": number}))
    with pytest.raises(ModelError, match="format"):
        load_model(str(folder))


def test_bundle_of_format_2_says_the_way_out(folder: Path) -> None:
    values = json.loads((folder / "model.json").read_text())
    old = {**values, "format": 2, "dtype": "bfloat16"}  # precision was part of a model
    (folder / "model.json").write_text(json.dumps(old))
    with pytest.raises(ModelError, match=r"format 2.*train the model again.*a new --index"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"null", b'"model_id"', b"{}", b"\xff\xfe\x00", b"<html>"]
)
def test_a_json_file_that_is_no_model_is_refused(text: bytes, folder: Path) -> None:
    (folder / "model.json").write_bytes(text)
    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("field", [*CHANGES, "model_id"])
@pytest.mark.parametrize("value", [None, 7, "x", [], [[1]], {"a": 1}])
def test_a_field_that_was_tampered_with_is_refused(field: str, value: object, folder: Path) -> None:
    values = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**values, field: value}))
    harmless = [("weights", "x"), ("training", {"a": 1}), ("descriptors", [])]
    if (field, value) in harmless:
        assert load_model(str(folder)).model_id == small_model().model_id
    else:
        with pytest.raises(ModelError):
            load_model(str(folder))


@pytest.mark.parametrize("change", [{"extra": 1}, {"classes": ...}, {"shapes": ...}])
def test_missing_and_unknown_fields_are_refused(change: dict[str, Any], folder: Path) -> None:
    values = {**json.loads((folder / "model.json").read_text()), **change}
    kept = {k: v for k, v in values.items() if v is not ...}
    (folder / "model.json").write_text(json.dumps(kept))
    with pytest.raises(ModelError, match="segrec model"):
        load_model(str(folder))


@pytest.mark.parametrize("names", [["car"], ["Car", "person"], ["_", "2", "a" * 64, "x_1"], []])
def test_usable_class_names_pass(names: list[str]) -> None:
    check_class_names(names)


@pytest.mark.parametrize(
    "names",
    [["a/b"], [".."], ["x=y"], ["'; drop"], ["Car", "car"], ["background"], ["Background"],
     ["ignore"], [""], ["a b"], ["a-b"], ["a\n"], ["é"], ["٣"], ["a" * 65], ["car", "car"],
     ["ok", "a.b"], ["%41"]],
)  # fmt: skip
def test_check_class_names_refuses_invalid_names(names: list[str]) -> None:
    with pytest.raises(ModelError, match="class name"):
        check_class_names(names)


def test_more_classes_than_fit_in_a_byte_are_refused() -> None:
    check_class_names([f"c{i}" for i in range(255)])
    with pytest.raises(ModelError):  # labels are one byte a cell, 0 the background
        check_class_names([f"c{i}" for i in range(256)])


def test_each_class_has_a_colour_and_random_weights_a_notice() -> None:
    classes = tuple(f"c{i}" for i in range(20))
    spec = dataclasses.replace(small_model().spec, classes=classes, components=tuple(range(21)))
    assert list(spec.colours) == list(spec.classes)
    assert all(len(c) == 7 and int(c[1:], 16) > 0 for c in spec.colours.values())
    assert spec.all_classes == ("background", *spec.classes)
    assert "random:0" in (spec.notice or "")
    assert dataclasses.replace(spec, weights="imagenet").notice is None


def test_notice_names_untrained_networks() -> None:
    trained = dataclasses.replace(small_model().spec, weights="imagenet")
    model = Model(trained, small_model().head, small_model().backbone)
    assert model.spec.notice is None
    drawn = model.with_descriptor("alexnet", {"weights": "random:0"}, {}).with_descriptor(
        "hog", {}, {}
    )
    assert drawn.spec.notice == "Untrained networks of alexnet, for trying out only."
