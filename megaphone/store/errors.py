"""What is wrong with a store before it serves."""


class UnusableStore(Exception):
    """The store cannot be used as it is, or as the settings say. The text says what to do."""
