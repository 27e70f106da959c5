"""Entry point of `python -m g4convert`."""

from g4convert.cli.start import main

main()
