"""Rows of tables: CSV and Parquet, their columns typed, their damage told."""
