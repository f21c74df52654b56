"""Measures the broker against the least that the same stack can do.

Every figure is a ratio of two things measured in turn, in one run, so that it holds on a machine
that is slow, shared or noisy. `python -m bench --help` says how to run it.
"""

import os

# Processes are started here only to run something else; must be said before grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
