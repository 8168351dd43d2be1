"""Detectors and segmenters as files: the maps that are recorded, and what reads answers off them."""
