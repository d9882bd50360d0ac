"""Comparison of a bundle with PyTorch."""
