"""Who calls: this package turns the proof of a caller into a `Caller`. It does all I/O for that."""
