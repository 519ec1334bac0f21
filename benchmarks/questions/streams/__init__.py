"""How fast a warm stream is, by what its samples are."""
