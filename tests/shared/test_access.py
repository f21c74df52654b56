"""Who may do what, with two nodes that share a store in Redis."""

from tests.parity.test_access import (
    test_a_full_channel_of_another_tenant_does_not_exist_either,
    test_every_call_needs_its_action,
    test_streams,
    test_the_channels_of_other_tenants_do_not_exist,
    test_the_right_token_is_admitted_and_then_known,
    test_where_an_action_needs_no_token_it_finds_every_channel,
)

__all__ = [
    "test_a_full_channel_of_another_tenant_does_not_exist_either",
    "test_every_call_needs_its_action",
    "test_streams",
    "test_the_channels_of_other_tenants_do_not_exist",
    "test_the_right_token_is_admitted_and_then_known",
    "test_where_an_action_needs_no_token_it_finds_every_channel",
]
