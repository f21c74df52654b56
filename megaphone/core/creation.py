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
    ttl_s: float | None = None
    """The TTL of a channel whose creator chooses none; None means that of the node."""
    capacity: int | None = None
    """The same for the capacity."""

    def of_tenant(self, default: ChannelOptions, most: ChannelOptions) -> "AllowedOptions":
        """Return what the creators of a tenant may choose. `default` is what its channels have, and
        `most` the largest that they may have, as far as that differs from the node."""
        ttl_s = self.ttl_s if default.ttl_s is None else default.ttl_s
        capacity = self.capacity if default.capacity is None else default.capacity
        return AllowedOptions(
            max_ttl_s=max(ttl_s or 0.0, self.max_ttl_s if most.ttl_s is None else most.ttl_s),
            max_capacity=max(
                capacity or 0, self.max_capacity if most.capacity is None else most.capacity
            ),
            ttl_s=ttl_s,
            capacity=capacity,
        )

    def checked(self, options: ChannelOptions) -> ChannelOptions:
        """Check the options of a new channel, and return them with the defaults.

        Raises: BadRequest, naming the maximum.
        """
        ttl_s, capacity = options.ttl_s, options.capacity
        # A comparison with NaN is false, so this refuses NaN too.
        if ttl_s is not None and not SHORTEST_TTL_S <= ttl_s <= self.max_ttl_s:
            raise BadRequest(
                f"the TTL must be {SHORTEST_TTL_S:g} to {self.max_ttl_s:g} seconds, not"
                f" {str(ttl_s).removesuffix('.0')}"
                " (max_channel_ttl_secs)"
            )
        if capacity is not None and not 1 <= capacity <= self.max_capacity:
            raise BadRequest(
                f"the capacity must be 1 to {self.max_capacity} events, not {capacity}"
                " (max_buffer_capacity)"
            )
        if options.label:
            checked_label(options.label)
        return ChannelOptions(
            self.capacity if capacity is None else capacity,
            self.ttl_s if ttl_s is None else ttl_s,
            options.label,
        )
