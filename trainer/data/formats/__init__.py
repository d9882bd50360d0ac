"""Readers of data sets, one format a file. Each raises DataError, which names the file, for what it cannot read or does not accept."""
