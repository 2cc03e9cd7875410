"""Run tasks on the Ray cluster, and share values between them."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Generic, TypeVar

import ray

from segrec_batch.distributed.cluster import convert_ray_errors

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_EXTRA_TASKS = 4  # tasks per node that reserve nothing; a task may take a gigabyte of memory


class SharedValue(Generic[Item]):
    """A value in the object store of the cluster, which is freed with this object.

    Tasks read its arrays without a copy. Ray spills to disk when memory is short.
    """

    def __init__(self, value: Item) -> None:
        with convert_ray_errors():
            self._ref: ray.ObjectRef[Item] = ray.put(value)

    def get(self) -> Item:
        """Return the value."""
        value: Item = ray.get(self._ref)
        return value


def run_tasks(
    function: Callable[[Item], Result], items: Iterable[Item], cpus: float = 0, gpus: float = 0
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items on the cluster; yield each item with its result when it is ready.

    Each task reserves `cpus` and `gpus`. Tasks that reserve nothing run beside the indexing chain,
    which reserves all CPUs; each node runs a few. Items are taken from the iterable when tasks can
    start soon: at most twice as many tasks are submitted as can run. No items need no cluster.
    """
    remaining = iter(items)
    first = list(islice(remaining, 1))
    if not first:
        return
    remaining = chain(first, remaining)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD", max_retries=-1)(
        function
    )
    running: dict[ray.ObjectRef[Result], Item] = {}
    with convert_ray_errors():
        while True:
            for item in islice(remaining, max(_count_tasks(cpus, gpus) - len(running), 0)):
                running[task.remote(item)] = item
            if not running:
                return
            done, _ = ray.wait(list(running))
            for ref in done:
                yield running.pop(ref), ray.get(ref)


def _count_tasks(cpus: float, gpus: float) -> int:
    """Return how many tasks to submit at once.

    If no node can run a task, a few are submitted, so that an autoscaler may start nodes for them.
    """
    if not (cpus or gpus):
        return _EXTRA_TASKS * len([node for node in ray.nodes() if node["Alive"]])
    name, amount = ("GPU", gpus) if gpus else ("CPU", cpus)
    fitting = int(ray.cluster_resources().get(name, 0) / amount)
    if not fitting:
        log.warning(f"no node of the Ray cluster has {amount:g} {name}; waiting for one")
    return 2 * fitting or _EXTRA_TASKS
