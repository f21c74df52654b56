"""This node and the others."""
