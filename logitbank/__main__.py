"""``python -m logitbank``: the command line, as ``cli`` and ``logitbank`` start it."""

from logitbank.cli import main

main()
