"""Spec of a model with three classes, without tensors, for benchmarks that run no model."""

import json
from pathlib import Path

from segrec_batch.model.spec import ModelSpec

SPEC = ModelSpec(
    ("car", "person", "tree"),
    ("conv5_3",),
    (0, 1, 2, 3),
    ((64, 64),),
    (0.0,) * 3,
    (1.0,) * 3,
    "none",
    "0" * 64,
)


class StandInModel:
    """A bundle that consists of `model.json` only."""

    spec = SPEC
    model_id = bundle_id = f"{1:016x}"

    def save(self, uri: str) -> None:
        """Write `model.json`."""
        Path(uri).mkdir(parents=True)
        values = {**self.spec.to_json(), "model_id": self.model_id}
        Path(uri, "model.json").write_text(json.dumps(values))
