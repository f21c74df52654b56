"""The HTTP face: it translates between HTTP and the core, and has no rules of its own."""
