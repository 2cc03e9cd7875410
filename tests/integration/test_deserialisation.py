"""Tests that the package never unpickles or evaluates bytes from outside."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from segrec_batch.common.errors import ModelError
from segrec_batch.model.weights import read_state
from tests.support.modules import MODULES, PACKAGE, ROOT
from tests.support.payloads import Payload

SOURCES = [*MODULES, *sorted((ROOT / "jobs").glob("*.py"))]
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "pandas"}
READERS = {"read_table", "ParquetFile", "read_schema", "read_metadata", "ParquetDataset"}
READERS |= {"to_pyarrow_table", "to_pyarrow_dataset", "to_pandas", "open_file", "open_stream"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The calls of a module, each with what is called as it is written."""
    tree = ast.walk(ast.parse(path.read_text()))
    return [(ast.unparse(node.func), node) for node in tree if isinstance(node, ast.Call)]


def option(call: ast.Call, name: str) -> object:
    (result,) = [k.value for k in call.keywords if k.arg == name] or [ast.Constant(None)]
    return ast.literal_eval(result)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_package_does_not_unpickle_or_eval(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        assert not UNPICKLERS & {part for name in names for part in name.split(".")}
    for name, call in calls(path):
        assert name not in ("eval", "exec", "compile", "__import__")
        assert "pickle" not in name
        if name == "torch.load":
            assert option(call, "weights_only") is True
        if name in ("np.load", "numpy.load"):
            assert option(call, "allow_pickle") in (None, False)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_parquet_is_read_in_one_module(path: Path) -> None:
    if path == PACKAGE / "index" / "parquet.py":
        return
    assert not READERS & {name.rpartition(".")[2] for name, _ in calls(path)}


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickled_weights_are_refused(how: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(canary), 2))  # as torch does
    else:
        torch.save({"0.weight": Payload(canary)}, path)
    with pytest.raises(ModelError, match="is not a state dict"):
        read_state(str(path), "backbone weights")
    assert not canary.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())  # noqa: S301
    assert canary.exists(), "the payload is a real one"
