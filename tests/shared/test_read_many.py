"""Reads of many channels, with two nodes that share a store in Redis."""

from tests.parity.test_read_many import *  # noqa: F403

# These need only one node, and one face.
del test_server_sent_events_name_their_channels_too  # noqa: F821
del test_a_body_that_does_not_fit_is_refused  # noqa: F821
