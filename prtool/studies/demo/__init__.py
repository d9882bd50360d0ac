"""The demonstration: a small world that the project draws itself, and a tiny CLIP that knows it."""
