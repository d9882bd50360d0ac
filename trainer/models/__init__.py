"""The image tower and what is learned on top of it."""
