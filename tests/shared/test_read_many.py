"""Reads of many channels, with two nodes that share a store in Redis."""

from tests.parity.test_read_many import *  # noqa: F403
