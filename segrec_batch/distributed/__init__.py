"""Ray: the cluster, resources, placement, tasks and metrics."""
