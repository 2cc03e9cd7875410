"""Decisions of Ray's autoscalers for a demand, on a cluster with a head and no workers."""

from collections import Counter
from functools import partial

from ray.autoscaler._private.resource_demand_scheduler import (
    _default_utilization_scorer,
    get_nodes_for,
)
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.support.cluster_files import Document

Demand = dict[str, float]


def started_by_v1(types: Document, head: str, demand: list[Demand]) -> dict[str, int]:
    """Return the nodes of each type that the autoscaler of `ray up` starts."""
    scorer = partial(_default_utilization_scorer, node_availability_summary=None)
    at_most = sum(t["max_workers"] for t in types.values())
    nodes, _ = get_nodes_for(types, {head: 1}, head, at_most, demand, scorer)
    return dict(nodes)


def started_by_v2(types: Document, head: str, demand: list[Demand]) -> dict[str, int]:
    """Return the nodes of each type that the autoscaler of KubeRay starts."""
    limits = {
        name: NodeTypeConfig(name, 0, t["max_workers"], resources=t["resources"])
        for name, t in types.items()
        if name != head
    }
    requests = [ResourceRequestUtil.make(bundle) for bundle in demand]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=limits,
        resource_requests=ResourceRequestUtil.group_by_count(requests),
    )
    nodes: Counter[str] = Counter()
    for launch in ResourceDemandScheduler().schedule(request).to_launch:
        nodes[launch.instance_type] += launch.count
    return dict(nodes)
