"""What parameters are made of: sections, choices, names that are checked, suggestions for misspelt ones."""
