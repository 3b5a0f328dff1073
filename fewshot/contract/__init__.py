"""What every method promises, as code: the contract tests and `check_method` examine the same list."""
