"""Rules of KubeRay's operator and its CRDs that can be checked in a file."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.support.cluster_files import Document

SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
DELETIONS = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")  # in the order of their TTLs
CONDITIONS = {"jobStatus": {"SUCCEEDED", "FAILED"}, "jobDeploymentStatus": {"Failed"}}


def job_spec(document: Document) -> Document | None:
    """Return the RayJobSpec of a RayJob or RayCronJob."""
    spec: Document = document["spec"]
    return {"RayJob": spec, "RayCronJob": spec.get("jobTemplate")}.get(document["kind"])


def cluster_spec(document: Document) -> Document:
    """Return the RayClusterSpec of a RayCluster, RayJob or RayCronJob."""
    job = job_spec(document)
    spec: Document = job["rayClusterSpec"] if job else document["spec"]
    return spec


def groups(document: Document) -> list[Document]:
    """Return the groups of the head and the workers."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(document: Document) -> dict[str, Document]:
    """Return the pod templates of a document: head, groups by name, submitter."""
    head, *workers = groups(document)
    result = {"head": head["template"], **{g["groupName"]: g["template"] for g in workers}}
    if job := job_spec(document):
        result["submitter"] = job["submitterPodTemplate"]
    return result


def complaints(document: Document) -> list[str]:
    """Return the violated rules of KubeRay 1.6's validation and of this project."""
    job = job_spec(document)
    return [*_of_cluster(cluster_spec(document)), *(_of_job(job) if job else ())]


def _of_cluster(spec: Document) -> Iterator[str]:
    scaled = spec.get("enableInTreeAutoscaling", False)
    if (
        spec.get("authOptions", {}).get("mode") != "token"
        or "secretName" not in spec["authOptions"]
    ):
        yield "authOptions: a token, from a Secret"
    for group in spec["workerGroupSpecs"]:
        low, now, high = (group.get(f"{n}eplicas", -1) for n in ("minR", "r", "maxR"))
        if not 0 <= low <= now <= high:
            yield f"{group['groupName']}: 0 ≤ minReplicas ≤ replicas ≤ maxReplicas"
        if scaled and low:
            yield f"{group['groupName']}: idle workers stay"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        if scaled and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "autoscaler v2 wants restartPolicy Never"
    if scaled and spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscalerOptions: version v2"


def _of_job(job: Document) -> Iterator[str]:
    if job.get("submissionMode") not in SUBMISSION_MODES:
        yield "submissionMode"
    for deadline in ("preRunningDeadlineSeconds", "activeDeadlineSeconds"):
        if job.get(deadline, 0) <= 0:
            yield f"{deadline} bounds what a run may cost"
    if job.get("backoffLimit", -1) < 0:
        yield "backoffLimit"
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    if bool(rules) == bool(job.get("shutdownAfterJobFinishes")):
        yield "either deletionRules or shutdownAfterJobFinishes"
    if rules and job.get("ttlSecondsAfterFinished"):
        yield "deletionRules have TTLs of their own"
    scaled = job["rayClusterSpec"].get("enableInTreeAutoscaling", False)
    if scaled and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        yield "DeleteWorkers and the autoscaler exclude each other"
    if rules:
        yield from _of_rules(rules)


def _of_rules(rules: list[Document]) -> Iterator[str]:
    delays: dict[tuple[str, str], dict[str, int]] = {}
    for rule in rules:
        policy, condition = rule["policy"], dict(rule["condition"])
        seconds = condition.pop("ttlSeconds", 0)
        if len(condition) != 1 or policy not in (*DELETIONS, "DeleteNone"):
            yield f"a known policy and one condition: {rule}"
            continue
        ((kind, status),) = condition.items()
        if status not in CONDITIONS.get(kind, ()) or seconds < 0:
            yield f"condition: {rule}"
        if policy in delays.setdefault((kind, status), {}):
            yield f"twice: {rule}"
        delays[kind, status][policy] = seconds
    for when, by_policy in delays.items():
        ordered = [by_policy[policy] for policy in DELETIONS if policy in by_policy]
        if any(later < sooner for sooner, later in pairwise(ordered)):
            yield f"{when}: TTLs of workers ≤ cluster ≤ self"
    if (
        not {"DeleteCluster", "DeleteSelf"}
        & delays.get(("jobDeploymentStatus", "Failed"), {}).keys()
    ):
        yield "a run that fails, or is past its deadline, leaves its cluster behind"


def json_schema(openapi: Any) -> Any:
    """Return a CRD's openAPIV3Schema as a JSON schema that refuses unknown keys, like `kubectl`."""
    if isinstance(openapi, list):
        return [json_schema(item) for item in openapi]
    if not isinstance(openapi, dict):
        return openapi
    schema = {key: json_schema(value) for key, value in openapi.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema = {"type": ["integer", "string"]}
    if openapi.get("nullable") is True and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") is True
    if isinstance(openapi.get("properties"), dict) and openapi.get("type") == "object":
        schema.setdefault("additionalProperties", open_ended)
    return schema


def crd_schema(crd: Document, version: str = "v1") -> Document:
    """Return the JSON schema of one version of a CRD; any metadata are allowed."""
    (result,) = [v for v in crd["spec"]["versions"] if v["name"] == version]
    schema: Document = json_schema(result["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema
