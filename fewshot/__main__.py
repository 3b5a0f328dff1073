"""`python -m fewshot`."""

from fewshot.cli.main import main

main()
