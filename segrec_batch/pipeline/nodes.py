"""GPUs that are still to come: an autoscaler starts their nodes once something asks for them."""

import os
import time

import ray
from ray.autoscaler.sdk import request_resources

from segrec_batch.errors import DeviceError
from segrec_batch.messages import say

_POLL = 1.0  # seconds


def await_gpu(number: int, seconds: float) -> None:
    """Ask for `number` GPUs; returns as soon as the cluster has any.

    Raises DeviceError if it has none after `seconds`; without RAY_ADDRESS, when the cluster is one
    of our own that nothing can join, at once.
    """
    if present_gpus():
        return
    seconds = seconds if os.environ.get("RAY_ADDRESS") else 0
    say(f"the Ray cluster has no GPU; {number} asked for, waiting up to {seconds:,.0f} s")
    request_resources(bundles=[{"GPU": 1}] * number)
    try:
        end = time.monotonic() + seconds
        while not present_gpus():
            if time.monotonic() >= end:
                raise DeviceError(
                    f"no GPU joined the Ray cluster within {seconds:,.0f} s (--wait); what its "
                    "autoscaler, if it has one, makes of the request is in `ray status`"
                )
            time.sleep(_POLL)
    finally:
        request_resources(bundles=[])  # a standing request; the actors themselves ask from now on


def present_gpus() -> int:
    """How many GPUs the cluster has."""
    return int(ray.cluster_resources().get("GPU", 0))
