"""Tests of torchvision's weights by name, downloaded from a server of this machine."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model_weights

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones import BACKBONES
from segrec_batch.model.weights import load_weights
from tests.support.file_server import FileServer, serve_file

RESNET = BACKBONES["resnet18"]
VGG = BACKBONES["vgg16"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that downloads go to; servers of this machine are contacted without a proxy."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "torch" / "hub" / "checkpoints"


def whole_network(name: str, member: str = "IMAGENET1K_V1") -> dict[str, Tensor]:
    """Return half-precision tensors named as in torchvision's file, with a classifier."""
    spec = BACKBONES[name]
    seed = sum(member.encode())
    state = {
        spec.prefix + k: v.half() for k, v in load_weights(f"random:{seed}", spec).state.items()
    }
    state[f"{spec.classifier}.weight"] = torch.full((2, 2), torch.nan)
    if name.startswith("resnet"):
        state["bn1.num_batches_tracked"] = torch.tensor(7)
    return state


def encode(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@contextmanager
def published(
    name: str, member: str, body: bytes, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Iterator[FileServer]:
    """Serve a body under the hash of `hashed`, by default its own, as weights of torchvision."""
    digest = hashlib.sha256(changes.pop("hashed", body)).hexdigest()[:8]
    with serve_file(f"/models/{name}-{digest}.pth", body, **changes) as server:
        monkeypatch.setattr(get_model_weights(name)[member].value, "url", server.url)
        yield server


def halves(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "origin", "member"),
    [
        ("vgg16", "imagenet", "IMAGENET1K_V1"),
        ("resnet18", "imagenet", "IMAGENET1K_V1"),
        ("resnet18", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("resnet50", "IMAGENET1K_V2", "IMAGENET1K_V2"),
    ],
)
def test_weights_by_name_are_downloaded_once(
    name: str,
    origin: str,
    member: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec, state = BACKBONES[name], whole_network(name, member)
    with published(name, member, encode(state), monkeypatch) as server:
        weights = [load_weights(origin, spec) for _ in range(2)]
        assert server.requests == [server.path]
    assert [file.name for file in cache.iterdir()] == [Path(server.path).name]
    expected = halves(state, spec.prefix)
    for one in weights:
        assert one.origin == origin
        assert one.is_trained
        assert one.state.keys() == spec.tensors.keys()
        assert all(torch.equal(v, expected[k]) for k, v in one.state.items())
    out = capsys.readouterr()
    assert out.out == ""
    assert server.url in out.err


def test_normalisation_comes_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """IMAGENET1K_FEATURES were trained on pixels of 0 to 255 less the mean (Simonyan 2015)."""
    body = encode(whole_network("vgg16"))
    with published("vgg16", "IMAGENET1K_FEATURES", body, monkeypatch):
        weights = load_weights("IMAGENET1K_FEATURES", VGG)
    assert [255 * x for x in weights.mean] == pytest.approx([123.0, 117.0, 104.0], abs=0.01)
    assert weights.std == pytest.approx([1 / 255] * 3)
    assert weights.mean != VGG.mean


def test_unknown_name_lists_the_names() -> None:
    message = (
        "torchvision has no weights IMAGENET1K_V9 of ResNet-50; it has IMAGENET1K_V1, IMAGENET1K_V2"
    )
    with pytest.raises(ModelError, match=message):
        load_weights("IMAGENET1K_V9", BACKBONES["resnet50"])
    with pytest.raises(ModelError, match="no weights IMAGENET1K_FEATURES of VGG-19"):
        load_weights("IMAGENET1K_FEATURES", BACKBONES["vgg19"])


@pytest.mark.parametrize(
    ("body", "length"), [(b"an error page", None), (b"wei", 7)], ids=["other content", "cut off"]
)
def test_damaged_download_is_refused(
    body: bytes, length: int | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"hashed": b"weights", "length": length}
    with published("resnet18", "IMAGENET1K_V1", body, monkeypatch, **changes) as server:
        with pytest.raises(ModelError, match="weights could not be downloaded") as error:
            load_weights("imagenet", RESNET)
        assert f"download {server.url} elsewhere and give its path" in str(error.value)
        assert server.requests == [server.path]
    assert not list(cache.iterdir())


def test_missing_download_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with serve_file("/models/other.pth", b"") as server:
        url = server.url.replace("other", "resnet18-00000000")
        enum = get_model_weights("resnet18")["IMAGENET1K_V1"]
        monkeypatch.setattr(enum.value, "url", url)
        with pytest.raises(ModelError, match="HTTP Error 404: Not Found") as error:
            load_weights("imagenet", RESNET)
    assert f"download {url} elsewhere and give its path" in str(error.value)
    assert not list(cache.iterdir())


def test_damaged_cached_file_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with published("resnet18", "IMAGENET1K_V1", b"", monkeypatch) as server:
        cache.mkdir(parents=True)
        cached = cache / Path(server.path).name
        cached.write_bytes(b"<html>")
        with pytest.raises(ModelError, match="delete that file") as error:
            load_weights("imagenet", RESNET)
        assert str(cached) in str(error.value)
        assert server.requests == []


def test_download_of_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = encode(whole_network("vgg16"))
    with (
        published("resnet18", "IMAGENET1K_V1", body, monkeypatch),
        pytest.raises(ModelError, match=r"not a state dict of ResNet-18: conv1\.weight is missing"),
    ):
        load_weights("imagenet", RESNET)


class _Code:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_downloaded_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = encode({"conv1.weight": _Code(tmp_path / "ran")})
    with (
        published("resnet18", "IMAGENET1K_V1", body, monkeypatch),
        pytest.raises(ModelError, match="ResNet-18"),
    ):
        load_weights("imagenet", RESNET)
    assert not (tmp_path / "ran").exists()
