"""What the flows are made of: a stage as Prefect tasks, supervised processes, reports."""
