"""Measures the broker beside bare servers that do as little as possible with the same libraries.

Every figure is a ratio of two things that are measured alternately in one run, so that it is valid
on a slow, shared or noisy machine. `python -m bench --help` says how to run it.
"""

import os

# We fork only to run other programs. grpc reads this variable when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
