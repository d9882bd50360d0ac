"""The paper's tables as commands: a grid of runs and evaluations that resumes, written next to the published numbers."""
