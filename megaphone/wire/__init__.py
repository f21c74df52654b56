"""Translates between bytes and the model: JSON, server-sent events, protobuf, and error codes."""
