"""The peers that a pruned encoder races against, and the result of the race."""
