"""Tests of cluster/k8s/ against Kubernetes' own schemas."""

import copy
import json
from collections.abc import Iterator

import kubernetes_validate
import pytest
from croniter import croniter

from tests.support import kuberay
from tests.support.cluster_files import CLUSTER, Document, broken, load

CLUSTERS = {name: load(f"k8s/{name}.yaml") for name in ("raycluster", "rayjob", "raycronjob")}
CRONJOB, CONFIG = load("k8s/cronjob.yaml"), load("k8s/config.yaml")
CRON_SPEC = "spec/jobTemplate/spec"
KUBERNETES = "1.33"
POLICY = load("k8s/networkpolicy.yaml")
PODS = {
    f"{name}-{pod}": template
    for name, document in CLUSTERS.items()
    for pod, template in kuberay.pods(document).items()
}
ALL_PODS = {**PODS, "cronjob": CRONJOB["spec"]["jobTemplate"]["spec"]["template"]}
SCALER = CLUSTERS["raycluster"]["spec"]["autoscalerOptions"]
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105


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
def test_broken_pod_is_found(path: str, value: object) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pod(broken(PODS["rayjob-head"], path, value))


@pytest.mark.parametrize("document", [CRONJOB, CONFIG, POLICY], ids=lambda d: d["kind"])
def test_kubernetes_kinds_are_valid(document: Document) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/concurencyPolicy", "Forbid"),
        (f"{CRON_SPEC}/backoffLimit", "none"),
        (f"{CRON_SPEC}/template/spec/containers/0/env/0/valu", "x"),
        (f"{CRON_SPEC}/template/spec/containers/0/securityContext/readOnlyRootFileSystem", True),
    ],
)
def test_broken_cronjob_is_found(path: str, value: object) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken(CRONJOB, path, value), KUBERNETES, strict=True)


def cron_complaints(document: Document) -> list[str]:
    """Return faults of a CronJob that its schema does not check."""
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


def test_cronjob_forbids_overlap() -> None:
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
def test_overlapping_cronjob_is_found(path: str, value: object) -> None:
    wrong = broken(CRONJOB, path, value)
    kubernetes_validate.validate(wrong, KUBERNETES, strict=True)
    assert len(cron_complaints(wrong)) == 1


def test_copies_are_equal() -> None:
    assert kuberay.job_spec(CLUSTERS["raycronjob"]) == CLUSTERS["rayjob"]["spec"]
    clusters = copy.deepcopy(CLUSTERS)
    stays, once = (kuberay.cluster_spec(clusters[n]) for n in ("raycluster", "rayjob"))
    token, without = stays["headGroupSpec"]["template"]["spec"]["volumes"].pop(), stays
    assert token["name"] == "kubernetes-token"  # for the autoscaler, which a RayJob has not
    assert without["headGroupSpec"] == once["headGroupSpec"]
    assert [g["template"] for g in stays["workerGroupSpecs"]][:1] == [
        g["template"] for g in once["workerGroupSpecs"]
    ]
    for key in ("schedule", "timeZone"):
        assert CLUSTERS["raycronjob"]["spec"][key] == CRONJOB["spec"][key]


def test_references_between_files_hold() -> None:
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


def test_shared_memory_fits_pod_memory() -> None:
    for name, pod in PODS.items():
        if name.endswith("-submitter"):  # no node of Ray
            continue
        (container,), volume = pod["spec"]["containers"], pod["spec"]["volumes"][0]
        assert container["volumeMounts"][0] == {"name": volume["name"], "mountPath": "/dev/shm"}
        limit, size = container["resources"]["limits"]["memory"], volume["emptyDir"]["sizeLimit"]
        assert container["resources"]["requests"]["memory"] == limit
        # Ray's object store takes 30 % of the memory, and goes to disk where /dev/shm is smaller
        assert 0.3 <= int(size.removesuffix("Gi")) / int(limit.removesuffix("Gi")) < 0.5


def open_doors(template: Document) -> Iterator[str]:
    """Return the rights of a pod that it does not need."""
    pod = template["spec"]
    own = pod.get("securityContext", {})
    if pod.get("automountServiceAccountToken") is not False:
        yield "it gets a token of Kubernetes"
    if own.get("runAsNonRoot") is not True or (own.get("runAsUser"), own.get("runAsGroup")) != (
        1000,
        100,
    ):
        yield "not the user of the image"
    if own.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "every system call"
    if {"hostNetwork", "hostPID", "hostIPC"} & pod.keys():
        yield "the host's namespaces"
    if any("hostPath" in volume for volume in pod.get("volumes", ())):
        yield "the host's files"
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        yield from open_container(container)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        if "sizeLimit" not in volumes[mounts["/tmp"]].get("emptyDir", {}):
            yield "/tmp without a bound"
        if TOKEN_FOLDER in mounts:
            yield "a token of Kubernetes beside the jobs"


def open_container(container: Document) -> Iterator[str]:
    """Return the rights of a container that it does not need."""
    closed = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if container.get("securityContext") != closed:
        yield "securityContext of a container"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("limits", {}).keys() & resources["requests"].keys():
        yield "no bound of CPU and memory"
    if "/tmp" not in [mount["mountPath"] for mount in container.get("volumeMounts", ())]:
        yield "nowhere to write"


@pytest.mark.parametrize("name", ALL_PODS)
def test_pods_are_restricted(name: str) -> None:
    assert list(open_doors(ALL_PODS[name])) == []


def test_all_pods_are_checked() -> None:
    assert {"rayjob-submitter", "raycronjob-submitter", "raycluster-decode"} <= ALL_PODS.keys()
    text = json.dumps([*CLUSTERS.values(), CRONJOB])
    assert text.count('"containers"') == len(ALL_PODS)


@pytest.mark.parametrize("name", ["raycluster-head", "rayjob-submitter", "cronjob"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("automountServiceAccountToken", True),
        ("securityContext/runAsNonRoot", False),
        ("securityContext/runAsGroup", 0),
        ("securityContext/seccompProfile/type", "Unconfined"),
        ("hostNetwork", True),
        ("volumes/0", {"name": "tmp", "hostPath": {"path": "/"}}),
        ("containers/0/securityContext/allowPrivilegeEscalation", True),
        ("containers/0/securityContext/readOnlyRootFilesystem", False),
        ("containers/0/securityContext/capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        ("containers/0/securityContext/privileged", True),
        ("containers/0/resources/limits", {"memory": "1Gi"}),
    ],
)
def test_unrestricted_pod_is_found(name: str, path: str, value: object) -> None:
    assert list(open_doors(broken(ALL_PODS[name], f"spec/{path}", value)))


def test_only_autoscaler_has_api_token() -> None:
    assert list(open_container(SCALER)) == []
    head = ALL_PODS["raycluster-head"]["spec"]
    (mount,) = [m for m in SCALER["volumeMounts"] if m["mountPath"] == TOKEN_FOLDER]
    (volume,) = [v for v in head["volumes"] if v["name"] == mount["name"]]
    paths = [
        item["path"]
        for source in volume["projected"]["sources"]
        for s in source.values()
        for item in s.get("items", [s])
    ]
    assert (sorted(paths), mount["readOnly"]) == (["ca.crt", "namespace", "token"], True)
    assert {m["name"] for m in SCALER["volumeMounts"]} <= {v["name"] for v in head["volumes"]}
    assert "kubernetes-token" not in json.dumps(head["containers"])


def test_network_policy_covers_every_pod() -> None:
    spec = POLICY["spec"]
    ours = spec["podSelector"]["matchLabels"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for name, template in ALL_PODS.items():
        assert ours.items() <= template["metadata"]["labels"].items(), name
    everything = [rule for rule in spec["ingress"] if "ports" not in rule]
    assert everything == [{"from": [{"podSelector": {"matchLabels": ours}}]}]
    assert all("podSelector" in peer for rule in spec["ingress"] for peer in rule["from"])
    ports = {p["port"] for rule in spec["ingress"] for p in rule.get("ports", ())}
    assert ports == {8080, 8265}
    assert [rule for rule in spec["egress"] if "ports" not in rule] == [
        {"to": [{"podSelector": {"matchLabels": ours}}]}
    ]
    (outside,) = [rule for rule in spec["egress"] if "ipBlock" in rule["to"][0]]
    assert {p["port"] for p in outside["ports"]} == {443, 6443}
    assert outside["to"][0]["ipBlock"]["except"] == ["169.254.0.0/16"]


def test_other_writes_go_to_tmp() -> None:
    """The root file system is read-only."""
    settings = CONFIG["data"]
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        assert settings[name].startswith("/tmp/")
