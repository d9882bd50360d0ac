"""The graphs in each precision."""
