"""Export: from a checkpoint to a bundle that was compared with PyTorch."""
