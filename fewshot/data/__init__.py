"""Banks: all items of one split, images or features, in memory or mapped from their file."""
