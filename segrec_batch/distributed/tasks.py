"""Tasks on the Ray cluster, and values that they share."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Generic, TypeVar

import ray

from segrec_batch.distributed.cluster import ray_errors

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_BESIDE = 4  # tasks of `each` on a node beside the chain: a part in memory may take a gigabyte


class Shared(Generic[Item]):
    """A value in the object store of the cluster, for as long as this object lives.

    Tasks read its arrays in place, without a copy. What does not fit goes to disk.
    """

    def __init__(self, value: Item) -> None:
        with ray_errors():
            self._ref: ray.ObjectRef[Item] = ray.put(value)

    def get(self) -> Item:
        """The value."""
        value: Item = ray.get(self._ref)
        return value


def each(
    function: Callable[[Item], Result], items: Iterable[Item], cpus: float = 0, gpus: float = 0
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items on the cluster; items with their results as they come.

    Without `cpus` and `gpus`, which a task then has to itself, it can run beside the chain, which
    leaves none free: a few tasks on each node. Items are taken as tasks end, twice as many as run.
    Without items no cluster is needed.
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
    """How many tasks Ray has at a time on the nodes of this moment, since they come and go. If none
    can run one, it has a few all the same: an autoscaler starts nodes for them.
    """
    if not (cpus or gpus):
        return _BESIDE * len([node for node in ray.nodes() if node["Alive"]])
    name, need = ("GPU", gpus) if gpus else ("CPU", cpus)
    fit = int(ray.cluster_resources().get(name, 0) / need)
    if not fit:
        log.warning(f"no node of the Ray cluster has {need:g} {name}; waiting for one")
    return 2 * fit or _BESIDE
