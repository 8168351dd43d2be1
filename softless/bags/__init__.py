"""Slides as bags: the features of a slide's tiles, where the tiles lie, and which patient the slide
is of.
"""
