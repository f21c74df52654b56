"""The options of a new channel, with two nodes that share a store in Redis."""

from tests.parity.test_options import *  # noqa: F403
