"""The objects of a zone, wherever they lie: clients, ranges, retries, deadlines, compression."""
