"""The entry point of `python -m jetstream`."""

from jetstream.cli import main

main()
