"""The honest table: every way to shorten an encoder at equal cost, with accuracy, fidelity, retrieval and measured speed."""
