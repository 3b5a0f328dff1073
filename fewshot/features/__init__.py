"""From images to features: crops, extraction, transforms, and a source that remembers them."""
