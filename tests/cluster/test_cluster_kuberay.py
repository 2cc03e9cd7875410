"""Tests of cluster/k8s/ray*.yaml against Ray's autoscaler and KubeRay's rules."""

import copy
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from tests.support import kuberay
from tests.support.autoscaler import started_by_v2
from tests.support.cluster_files import Document, broken, load, locked

CLUSTERS = {name: load(f"k8s/{name}.yaml") for name in ("raycluster", "rayjob", "raycronjob")}
GPU = "spec/workerGroupSpecs/0"
RULES = "spec/deletionStrategy/deletionRules"


def autoscaling(document: Document) -> Document:
    """Return the configuration that Ray's autoscaler derives from a cluster and validates."""
    cr = {"metadata": {"name": "segrec", "namespace": "x"}, "spec": kuberay.cluster_spec(document)}
    config: Document = _derive_autoscaling_config_from_ray_cr(copy.deepcopy(cr))
    return config


@pytest.mark.parametrize("name", CLUSTERS)
def test_autoscaler_reads_clusters(name: str) -> None:
    config = autoscaling(CLUSTERS[name])
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0  # no task of the job beside the driver
    assert types["gpu"]["resources"] == {"CPU": 28, "GPU": 1, "memory": 96 * 2**30}
    assert types["gpu"]["min_workers"] == (0 if name == "raycluster" else 2)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{GPU}/minReplicas", "two"),
        (f"{GPU}/template/spec/containers/0/resources", {}),
        (f"{GPU}/template/spec/containers/0/resources/limits/memory", "96 GB"),
    ],
)
def test_unreadable_cluster_is_found(path: str, value: object) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError, TypeError)):
        autoscaling(broken(CLUSTERS["raycluster"], path, value))


def test_autoscaler_uses_cpu_for_decoding() -> None:
    types = autoscaling(CLUSTERS["raycluster"])["available_node_types"]
    assert started_by_v2(types, "headgroup", [{"GPU": 1}] * 2) == {"gpu": 2}
    assert started_by_v2(types, "headgroup", [{"CPU": 0.5}] * 57) == {"decode": 2}


@pytest.mark.parametrize("name", CLUSTERS)
def test_kuberay_accepts_files(name: str) -> None:
    assert kuberay.complaints(CLUSTERS[name]) == []
    assert kuberay.cluster_spec(CLUSTERS[name])["rayVersion"] == locked("ray")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("raycluster", "spec/authOptions/mode", "disabled"),
        ("raycluster", "spec/autoscalerOptions/version", "v1"),
        ("raycluster", f"{GPU}/maxReplicas", -1),
        ("raycluster", "spec/headGroupSpec/template/spec/restartPolicy", "Always"),
        ("rayjob", "spec/submissionMode", "K8SJobMode"),
        ("rayjob", "spec/shutdownAfterJobFinishes", True),
        ("rayjob", "spec/deletionStrategy", {}),
        ("rayjob", "spec/activeDeadlineSeconds", 0),
        ("rayjob", f"{RULES}/0/condition/jobDeploymentStatus", "Failed"),
        ("rayjob", f"{RULES}/0/condition/jobStatus", "SUCCEDED"),
        ("rayjob", f"{RULES}/1/policy", "DeleteCluster"),
        ("rayjob", f"{RULES}/4/condition/ttlSeconds", 60),
        ("rayjob", "spec/rayClusterSpec/workerGroupSpecs/0/minReplicas", 3),
    ],
)
def test_kuberay_refusals_are_found(name: str, path: str, value: object) -> None:
    assert len(kuberay.complaints(broken(CLUSTERS[name], path, value))) == 1


def test_failed_run_deletes_cluster() -> None:
    rules = CLUSTERS["rayjob"]["spec"]["deletionStrategy"]["deletionRules"]
    wrong = broken(CLUSTERS["rayjob"], RULES, rules[:2])
    assert len(kuberay.complaints(wrong)) == 1


def test_entrypoint_is_expanded_on_head(tmp_path: Path) -> None:
    """The submitter's shell, which has no SEGREC_IMAGES, reads it first; Ray joins its words."""
    show = tmp_path / "show"
    show.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    show.chmod(0o700)
    entrypoint = CLUSTERS["rayjob"]["spec"]["entrypoint"]
    submitted = shlex.join(said("bash", f"{show} {entrypoint}", {}))
    job = "python /opt/segrec_batch/jobs/index.py"
    assert job in submitted
    values = {
        "SEGREC_IMAGES": "s3://b/my images",
        "SEGREC_MODEL": "/m",
        "SEGREC_INDEX": "i",
        "SEGREC_DEVICE": "cuda",
    }
    assert said("sh", submitted.replace(job, str(show)), values) == [
        *("--images", "s3://b/my images", "--model", "/m", "--index", "i"),
        *("--device", "cuda"),
    ]


def said(shell: str, command: str, environment: dict[str, str]) -> list[str]:
    """The words that a shell makes of a command that prints them as JSON."""
    done = subprocess.run(
        [shell, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    words: list[str] = json.loads(done.stdout)
    return words


CRD = """
spec:
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [entrypoint]
              properties:
                entrypoint: {type: string}
                suspend: {type: boolean, nullable: true}
                properties: {type: object, properties: {type: {type: string}}}
                limits:
                  type: object
                  additionalProperties:
                    anyOf: [{type: integer}, {type: string}]
                    x-kubernetes-int-or-string: true
"""


def test_crd_schema_is_strict() -> None:
    schema = kuberay.crd_schema(yaml.safe_load(CRD))
    good: Document = {"kind": "X", "metadata": {"name": "x"}, "spec": {"entrypoint": "true"}}
    for extra in (
        {"limits": {"cpu": "1", "gpu": 1}},
        {"suspend": None},
        {"properties": {"type": "x"}},
    ):
        jsonschema.validate({**good, "spec": good["spec"] | extra}, schema)
    for wrong in (
        {},
        {"entrypoint": 1},
        {"entrypoint": "x", "suspnd": True},
        {"limits": {"cpu": 0.5}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, "spec": wrong}, schema)


@pytest.mark.skipif(
    "KUBERAY_CRD_DIR" not in os.environ, reason="set KUBERAY_CRD_DIR to KubeRay's CRDs"
)
@pytest.mark.parametrize("name", CLUSTERS)
def test_crds_accept_files(name: str) -> None:
    """KUBERAY_CRD_DIR: ray-operator/config/crd/bases of a checkout of KubeRay 1.6 or newer."""
    crd = Path(os.environ["KUBERAY_CRD_DIR"]) / f"ray.io_{name}s.yaml"
    schema = kuberay.crd_schema(yaml.safe_load(crd.read_text()))
    jsonschema.validate(CLUSTERS[name], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken(CLUSTERS[name], "spec/suspnd", True), schema)
