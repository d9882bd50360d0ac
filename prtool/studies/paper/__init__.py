"""The paper's tables as commands: a grid of runs and evaluations that resumes, written beside the published numbers."""
