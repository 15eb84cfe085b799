"""`python -m redline` is the command line."""

from redline.cli.main import main

main()
