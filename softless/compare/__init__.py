"""Comparisons of models: trained under one recipe, or timed in turns; each printed as a table and
kept as CSV rows with where they came from.
"""
