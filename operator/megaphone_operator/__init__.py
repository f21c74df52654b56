"""The operator: runs clusters of the Megaphone broker in Kubernetes."""

from importlib.metadata import version

__version__ = version("megaphone-operator")
