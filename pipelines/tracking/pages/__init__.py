"""What MLflow's pages say of a run: its name, its description, and links that lead there."""
