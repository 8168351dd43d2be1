"""Slides on their way to bags of features, and scores of tiles on their way back to maps."""
