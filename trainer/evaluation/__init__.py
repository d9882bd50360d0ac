"""Accuracy against keep rate, for Patch Ranking and the baselines."""
