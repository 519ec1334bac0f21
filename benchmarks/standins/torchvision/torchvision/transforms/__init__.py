"""The names that streaming's vision datasets import; none is called."""
