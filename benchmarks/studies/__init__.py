"""Measurements behind single decisions, run by hand; no peers."""
