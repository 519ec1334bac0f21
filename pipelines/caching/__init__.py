"""The cache tiers that a recipe asks for, put together, and filled before they are needed."""
