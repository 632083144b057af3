"""`python -m flatgd`: the command line."""

from flatgd.cli.main import main

main()
