"""Where a node listens: its sockets, and who can reach them."""
