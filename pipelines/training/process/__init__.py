"""A rank as a process: its group, device, signals, heartbeat, and what to do when memory runs out."""
