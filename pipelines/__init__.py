"""What to do with data and models. Everything here runs from a plain shell, without Prefect."""
