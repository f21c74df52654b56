"""What the broker does with its own process: its memory, its file descriptors, its garbage."""
