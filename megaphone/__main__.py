"""`python -m megaphone` is the command `megaphone`."""

from megaphone.cli.main import main

main()
