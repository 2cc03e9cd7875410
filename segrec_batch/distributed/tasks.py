"""Tasks on the Ray cluster, and values that tasks share."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Generic, TypeVar

import ray

from segrec_batch.distributed.cluster import ray_errors

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_BESIDE = 4  # tasks per node beside the chain; a task may take a gigabyte of memory


class Shared(Generic[Item]):
    """Value in the object store of the cluster; it is freed with this object.

    Tasks read its arrays without a copy. Ray spills to disk when memory is short.
    """

    def __init__(self, value: Item) -> None:
        with ray_errors():
            self._ref: ray.ObjectRef[Item] = ray.put(value)

    def get(self) -> Item:
        """Return the value."""
        value: Item = ray.get(self._ref)
        return value


def run_tasks(
    function: Callable[[Item], Result], items: Iterable[Item], cpus: float = 0, gpus: float = 0
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items on the cluster; yield each item with its result when it is ready.

    Tasks reserve `cpus` and `gpus`. Without them a few tasks per node run beside the chain, which
    reserves all CPUs. Twice as many items as can run are taken at a time. Without items no cluster
    is needed.
    """
    waiting = iter(items)
    first = list(islice(waiting, 1))
    if not first:
        return
    waiting = chain(first, waiting)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD", max_retries=-1)(
        function
    )
    running: dict[ray.ObjectRef[Result], Item] = {}
    with ray_errors():
        while True:
            for item in islice(waiting, max(_at_once(cpus, gpus) - len(running), 0)):
                running[task.remote(item)] = item
            if not running:
                return
            done, _ = ray.wait(list(running))
            for ref in done:
                yield running.pop(ref), ray.get(ref)


def _at_once(cpus: float, gpus: float) -> int:
    """Return the number of tasks to submit for the present nodes.

    If no node can run a task, a few are submitted, for which an autoscaler may start nodes.
    """
    if not (cpus or gpus):
        return _BESIDE * len([node for node in ray.nodes() if node["Alive"]])
    name, need = ("GPU", gpus) if gpus else ("CPU", cpus)
    fit = int(ray.cluster_resources().get(name, 0) / need)
    if not fit:
        log.warning(f"no node of the Ray cluster has {need:g} {name}; waiting for one")
    return 2 * fit or _BESIDE
