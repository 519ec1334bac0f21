"""The models that a recipe can name."""
