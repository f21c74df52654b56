"""Admission: this package turns the proof of a call into a `Caller`. It does all I/O for that."""
