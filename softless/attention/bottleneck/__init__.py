"""SOFT and its normalised form in parts: kernels, bottleneck tokens, the product, the same as sums
over tokens, claims.
"""
