"""Megaphone: push events to browsers, phones and services through one broker."""

__version__ = "0.11.0"
