"""A registered model at work: predictions, and text."""
