"""cluster/k8s/: Kubernetes' schemas, Ray's autoscaler and the rules of KubeRay take every file."""

import copy
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from croniter import croniter
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from tests import kuberay
from tests.autoscaler import started_by_v2
from tests.cluster_files import CLUSTER, Document, broken, load, locked

CLUSTERS = {name: load(f"k8s/{name}.yaml") for name in ("raycluster", "rayjob", "raycronjob")}
CRONJOB, CONFIG = load("k8s/cronjob.yaml"), load("k8s/config.yaml")
CRON_SPEC = "spec/jobTemplate/spec"
KUBERNETES = "1.33"
PODS = {
    f"{name}-{i}": group["template"]
    for name, document in CLUSTERS.items()
    for i, group in enumerate(kuberay.groups(document))
}
GPU = "spec/workerGroupSpecs/0"
RULES = "spec/deletionStrategy/deletionRules"


def check_pod(template: Document) -> None:
    """A pod template by Kubernetes' own schema, no unknown keys; the CRDs hold less of it."""
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
    kubernetes_validate.validate({**wrapped, "template": template}, KUBERNETES, strict=True)


def autoscaling(document: Document) -> Document:
    """What Ray's autoscaler makes of a cluster; it validates that, too."""
    cr = {"metadata": {"name": "segrec", "namespace": "x"}, "spec": kuberay.cluster_spec(document)}
    config: Document = _derive_autoscaling_config_from_ray_cr(copy.deepcopy(cr))
    return config


@pytest.mark.parametrize("name", PODS)
def test_pods_are_valid(name: str) -> None:
    check_pod(PODS[name])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/containers/0/imagePullPolice", "Always"),
        ("spec/restartPolicy", ["Never"]),
        ("spec/containers/0/ports/0/containerPort", "8080"),
        ("spec/volumes/0/emptyDir/sizelimit", "8Gi"),
    ],
)
def test_a_broken_pod_is_found(path: str, value: object) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pod(broken(PODS["rayjob-0"], path, value))


@pytest.mark.parametrize("document", [CRONJOB, CONFIG], ids=lambda d: d["kind"])
def test_kubernetes_accepts_its_own_kinds(document: Document) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/concurencyPolicy", "Forbid"),
        (f"{CRON_SPEC}/backoffLimit", "none"),
        (f"{CRON_SPEC}/template/spec/containers/0/env/0/valu", "x"),
    ],
)
def test_a_broken_cronjob_is_found(path: str, value: object) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken(CRONJOB, path, value), KUBERNETES, strict=True)


def cron_complaints(document: Document) -> list[str]:
    """What the schema of a CronJob leaves open."""
    spec = document["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    env = {e["name"]: e for e in pod["containers"][0]["env"]}
    holds = {
        "concurrencyPolicy": spec["concurrencyPolicy"] == "Forbid",
        "schedule": croniter.is_valid(spec["schedule"]),
        "timeZone": spec["timeZone"] == "Etc/UTC",
        "startingDeadlineSeconds": spec["startingDeadlineSeconds"] > 0,
        "backoffLimit": spec["jobTemplate"]["spec"]["backoffLimit"] == 0,
        "restartPolicy": pod["restartPolicy"] == "Never",
        "RAY_AUTH_MODE": env["RAY_AUTH_MODE"].get("value") == "token",
        "RAY_AUTH_TOKEN": "secretKeyRef" in env["RAY_AUTH_TOKEN"].get("valueFrom", {}),
        "command": pod["containers"][0]["command"] == ["/opt/segrec_batch/cluster/nightly.sh"],
    }
    return [name for name, good in holds.items() if not good]


def test_the_cronjob_runs_one_night_at_a_time() -> None:
    assert cron_complaints(CRONJOB) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/concurrencyPolicy", "Allow"),
        ("spec/concurrencyPolicy", "forbid"),
        ("spec/schedule", "30 25 * * *"),
        (f"{CRON_SPEC}/backoffLimit", 6),
        (f"{CRON_SPEC}/template/spec/containers/0/env/1/value", "disabled"),
        (f"{CRON_SPEC}/template/spec/containers/0/env/2", {"name": "RAY_AUTH_TOKEN", "value": "x"}),
    ],
)
def test_a_cronjob_against_the_rules_is_found(path: str, value: object) -> None:
    wrong = broken(CRONJOB, path, value)
    kubernetes_validate.validate(wrong, KUBERNETES, strict=True)
    assert len(cron_complaints(wrong)) == 1


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_autoscaler_reads_the_clusters(name: str) -> None:
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
def test_what_the_autoscaler_cannot_read_is_found(path: str, value: object) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError, TypeError)):
        autoscaling(broken(CLUSTERS["raycluster"], path, value))


def test_the_autoscaler_takes_no_gpu_for_decoding() -> None:
    types = autoscaling(CLUSTERS["raycluster"])["available_node_types"]
    assert started_by_v2(types, "headgroup", [{"GPU": 1}] * 2) == {"gpu": 2}
    assert started_by_v2(types, "headgroup", [{"CPU": 0.5}] * 57) == {"decode": 2}


@pytest.mark.parametrize("name", CLUSTERS)
def test_kuberay_finds_nothing_wrong(name: str) -> None:
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
def test_what_kuberay_would_refuse_is_found(name: str, path: str, value: object) -> None:
    assert len(kuberay.complaints(broken(CLUSTERS[name], path, value))) == 1


def test_a_failed_run_leaves_no_cluster_behind() -> None:
    rules = CLUSTERS["rayjob"]["spec"]["deletionStrategy"]["deletionRules"]
    wrong = broken(CLUSTERS["rayjob"], RULES, rules[:2])
    assert len(kuberay.complaints(wrong)) == 1


def test_copies_are_equal() -> None:
    assert kuberay.job_spec(CLUSTERS["raycronjob"]) == CLUSTERS["rayjob"]["spec"]
    stays, once = (kuberay.cluster_spec(CLUSTERS[n]) for n in ("raycluster", "rayjob"))
    assert stays["headGroupSpec"] == once["headGroupSpec"]
    assert [g["template"] for g in stays["workerGroupSpecs"]][:1] == [
        g["template"] for g in once["workerGroupSpecs"]
    ]
    for key in ("schedule", "timeZone"):
        assert CLUSTERS["raycronjob"]["spec"][key] == CRONJOB["spec"][key]


def test_every_reference_between_the_files_holds() -> None:
    """A pod whose ConfigMap has another name waits for ever; KubeRay names the head's service."""
    pods = [*(p["spec"] for p in PODS.values())]
    pods.append(CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    for container in (c for pod in pods for c in pod["containers"]):
        (configmap,) = [
            e["configMapRef"]["name"] for e in container["envFrom"] if "configMapRef" in e
        ]
        assert configmap == CONFIG["metadata"]["name"]
    address, _, token = pods[-1]["containers"][0]["env"]
    name = CLUSTERS["raycluster"]["metadata"]["name"]
    assert address == {"name": "RAY_API_SERVER_ADDRESS", "value": f"http://{name}-head-svc:8265"}
    for document in CLUSTERS.values():
        secret = kuberay.cluster_spec(document)["authOptions"]["secretName"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": secret, "key": "auth_token"}
    readme = (CLUSTER / "README.md").read_text()
    assert f"kubectl create secret generic {secret} --from-literal=auth_token=" in readme


def test_shared_memory_is_part_of_the_memory_of_its_pod() -> None:
    for pod in PODS.values():
        (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        limit, size = container["resources"]["limits"]["memory"], volume["emptyDir"]["sizeLimit"]
        assert container["resources"]["requests"]["memory"] == limit
        # Ray's object store takes 30 % of the memory, and goes to disk where /dev/shm is smaller
        assert 0.3 <= int(size.removesuffix("Gi")) / int(limit.removesuffix("Gi")) < 0.5


def test_the_entrypoint_is_expanded_on_the_head(tmp_path: Path) -> None:
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


def test_the_schema_of_a_crd_is_read_as_kubernetes_reads_it() -> None:
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
def test_the_crds_of_kuberay_accept_the_files(name: str) -> None:
    """KUBERAY_CRD_DIR: ray-operator/config/crd/bases of a checkout of KubeRay 1.6 or newer."""
    crd = Path(os.environ["KUBERAY_CRD_DIR"]) / f"ray.io_{name}s.yaml"
    schema = kuberay.crd_schema(yaml.safe_load(crd.read_text()))
    jsonschema.validate(CLUSTERS[name], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken(CLUSTERS[name], "spec/suspnd", True), schema)
