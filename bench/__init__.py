"""Measures the broker beside others that do the same work: the Rust broker (0.10) and nginx.

All are measured alternately in one run, so that every ratio is valid on a slow, shared or noisy
machine. `python -m bench --help` says how to run it.
"""

import os

# We fork only to run other programs. grpc reads this variable when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
