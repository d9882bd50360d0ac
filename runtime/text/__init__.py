"""From prompts to token ids and embeddings."""
