"""Decides what a cluster needs, by pure functions: no I/O, no clock and no global state.

`planning.plan` is the whole of it: a resource, the objects that were seen and what the nodes said
give the objects that must be there, those that must go, and the status. Nothing in here imports a
library of Kubernetes, so tests need none.
"""
