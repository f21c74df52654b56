"""The process of the broker: its memory, its file descriptors, its garbage collection."""
