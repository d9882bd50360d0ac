"""What a graph file may hold, checked before any engine reads it."""
