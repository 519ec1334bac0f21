"""Sources: which files there are, with a fingerprint each."""
