"""Few-shot learning research: the public names."""
