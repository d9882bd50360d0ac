"""prtool: a frozen CLIP image encoder, made faster by pruning patches."""
