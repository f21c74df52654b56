"""Trace contexts, with two nodes that share a store in Redis."""

from tests.parity.test_traces import *  # noqa: F403
