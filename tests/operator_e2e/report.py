"""What each scenario has to say at the end of the run."""

LINES: list[str] = []
