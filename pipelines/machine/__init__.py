"""What this machine is, what it can do, what is wrong with it, and what a run on it costs."""
