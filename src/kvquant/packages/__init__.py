"""Distributions of the package index as files: fetched through pip, by hash; nothing in them is run."""
