"""From the name of a model to validated files and weights."""
