"""`python -m flatgd`, also under accelerate launch."""

from flatgd.cli import main

main()
