"""Kernels behind `torch.library`: native C++ for processors.

Each is a backend of the operators it serves.
"""
