"""Ray: the cluster, placement, tasks and scratch folders."""
