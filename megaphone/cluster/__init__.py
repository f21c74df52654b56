"""Replication: how the agents of one node are copied and moved to other nodes."""
