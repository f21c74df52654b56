"""Where a node listens: its sockets, and which other machines can reach them."""
