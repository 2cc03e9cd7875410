"""cluster/k8s/: Kubernetes' own schemas accept every file, and the files fit together."""

import kubernetes_validate
import pytest
from croniter import croniter

from tests import kuberay
from tests.cluster_files import CLUSTER, Document, broken, load

CLUSTERS = {name: load(f"k8s/{name}.yaml") for name in ("raycluster", "rayjob", "raycronjob")}
CRONJOB, CONFIG = load("k8s/cronjob.yaml"), load("k8s/config.yaml")
CRON_SPEC = "spec/jobTemplate/spec"
KUBERNETES = "1.33"
PODS = {
    f"{name}-{i}": group["template"]
    for name, document in CLUSTERS.items()
    for i, group in enumerate(kuberay.groups(document))
}


def check_pod(template: Document) -> None:
    """A pod template by Kubernetes' own schema, no unknown keys; the CRDs hold less of it."""
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
    kubernetes_validate.validate({**wrapped, "template": template}, KUBERNETES, strict=True)


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
