"""Ray clusters of several nodes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


def start_cluster(nodes: int, **head: object) -> Cluster:
    """A cluster of its head and `nodes` nodes of one core, processes of their own, as on as many
    machines. Ray gives a node 30 s to start, which may not be enough on a busy machine: another
    cluster is tried then."""
    # scaling_search sets what Ray reads when it is imported
    from ray.cluster_utils import Cluster

    loopback = {"node_ip_address": "127.0.0.1"}
    attempts = 5
    while True:
        attempts -= 1
        cluster = Cluster()
        try:
            cluster.add_node(include_dashboard=False, **loopback, **head)
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, **loopback)
            return cluster
        except Exception:  # Ray raises nothing more specific
            cluster.shutdown()
            if attempts == 0:
                raise
