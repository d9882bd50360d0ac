"""Export: from a checkpoint to a bundle, with proof that both agree."""
