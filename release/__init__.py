"""`make release`: check that the repository can be released, and build the distributions."""
