"""How work runs on this machine: executors, Ray, locks, child processes, sockets, garbage collection."""
