"""Several datasets in one order, by weights that may change with the step."""
