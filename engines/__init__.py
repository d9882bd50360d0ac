"""Engines: one optional library a file, from a graph to something that runs."""
