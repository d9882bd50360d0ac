"""Other ways to choose patches, one a file, behind the interface of the evaluation."""
