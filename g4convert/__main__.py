"""`python -m g4convert`."""

from g4convert.cli.app import main

main()
