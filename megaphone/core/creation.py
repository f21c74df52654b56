"""What the creator of a channel may ask for."""

from dataclasses import dataclass

from megaphone.core.content import checked_label
from megaphone.errors import BadRequest
from megaphone.model import ChannelOptions

SHORTEST_TTL_S = 0.001


@dataclass(frozen=True, slots=True)
class AllowedOptions:
    """The largest options that a creator may choose."""

    max_ttl_s: float
    max_capacity: int

    def checked(self, options: ChannelOptions) -> ChannelOptions:
        """Check and return the options of a new channel. Raises: BadRequest, naming the maximum."""
        ttl_s, capacity = options.ttl_s, options.capacity
        # A comparison with NaN is false, so this refuses NaN too.
        if ttl_s is not None and not SHORTEST_TTL_S <= ttl_s <= self.max_ttl_s:
            raise BadRequest(
                f"the TTL must be {SHORTEST_TTL_S:g} to {self.max_ttl_s:g} seconds, not {ttl_s:g}"
                " (max_channel_ttl_secs)"
            )
        if capacity is not None and not 1 <= capacity <= self.max_capacity:
            raise BadRequest(
                f"the capacity must be 1 to {self.max_capacity} events, not {capacity}"
                " (max_buffer_capacity)"
            )
        if options.label:
            checked_label(options.label)
        return options
