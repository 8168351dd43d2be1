"""A page on this machine to try a model with: `softless serve`."""
