"""Several processes that serve the same ports, and the supervisor that starts and stops them."""
