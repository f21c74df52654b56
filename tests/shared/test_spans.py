"""The spans of two nodes that share a store in Redis."""

from tests.parity.test_spans import *  # noqa: F403
