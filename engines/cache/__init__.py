"""Built engines on disk."""
