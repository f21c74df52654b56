"""Channels in the memory of this process, and their replication to other nodes of this kind."""

from megaphone.store.memory.store import MemoryStore

__all__ = ["MemoryStore"]
