"""The pruned encoder compared with its peers: open_clip, torch.compile and token merging."""
