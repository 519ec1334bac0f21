"""Stands in for torchvision in the peers' environment: litdata and streaming import it at start, and use it for images
only. Nothing that is measured calls it."""
