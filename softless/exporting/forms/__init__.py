"""Models in their edge form: one size of image, and nothing left to compute that its grid alone
decides.
"""
