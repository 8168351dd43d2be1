"""Detectors and segmenters as files: maps that are recorded, and what reads answers off them."""
