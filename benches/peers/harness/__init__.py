"""Runs servers side by side under one load generator."""
