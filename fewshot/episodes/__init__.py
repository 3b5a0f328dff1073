"""Episodes, and where they come from: samplers, and lists that were saved."""
