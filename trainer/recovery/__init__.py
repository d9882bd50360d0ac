"""Training of recovery: shortened encoders learn to give the unpruned embeddings, without labels."""
