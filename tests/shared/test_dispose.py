"""The removal of a channel by its producer address, with two nodes that share a store in Redis."""

from tests.parity.test_dispose import *  # noqa: F403
