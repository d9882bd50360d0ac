"""Training of learnable tokens."""
