"""Training: which patches matter, learned and measured."""
