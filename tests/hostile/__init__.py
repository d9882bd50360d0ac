"""Damaged and hostile bundles, and what runs them through the reader."""
