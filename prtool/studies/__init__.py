"""Programs that run the verbs in loops: tune, the tables of the paper, the demonstration."""
