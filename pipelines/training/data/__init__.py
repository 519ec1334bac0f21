"""A stream as training takes it: loaders, and how many answers a step asks for."""
