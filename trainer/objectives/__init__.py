"""What a patch scorer learns from."""
