"""Files of cluster/ with filled-in placeholders, and copies broken on purpose."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PLACEHOLDER = re.compile(r"<[A-Z]+>")
FILLED_IN = {
    "<BUCKET>": "streets",
    "<IMAGE>": "streets/segrec:1",
    "<REGION>": "us-west-2",
    "<GROUP>": "sg-0123456789abcdef0",
    "<DIGEST>": "0a" * 32,
    "<AMI>": "ami-04681a1dbd79675a5",  # moto has this one
}

Document = dict[str, Any]


def load(name: str) -> Document:
    """Return one YAML file of cluster/ with its placeholders filled in."""
    text = PLACEHOLDER.sub(lambda result: FILLED_IN[result[0]], (CLUSTER / name).read_text())
    document: Document = json.loads(json.dumps(yaml.safe_load(text)))  # each alias becomes a copy
    return document


def broken(document: Document, path: str, value: Any) -> Document:
    """Return a copy with another value at `path`: keys and list positions, joined by slashes."""
    changed = copy.deepcopy(document)
    *above, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    place: Any = changed
    for step in above:
        place = place[step]
    place[last] = value
    return changed


def locked(package: str) -> str:
    """Return the version of a package in requirements.lock."""
    (version,) = re.findall(
        rf"^{package}==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    return str(version)
