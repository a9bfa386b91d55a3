"""Measures what a server costs, fits a model to that, and writes docs/capacity.md."""
