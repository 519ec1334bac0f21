"""Ranks as workers of Ray Train."""
