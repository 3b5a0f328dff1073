"""Labels for own images from a few examples, with a page to look at."""
