"""`prtool tune`: the search for pruning locations and a keep rate."""
