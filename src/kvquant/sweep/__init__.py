"""Sweeps: every setting that matters on one board or many, cell by cell, and what to choose from them."""
