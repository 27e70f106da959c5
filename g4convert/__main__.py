"""`python -m g4convert`."""

from g4convert.cli import main

main()
