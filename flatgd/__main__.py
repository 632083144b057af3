"""`python -m flatgd`: the command line."""

from flatgd.cli import main

main()
