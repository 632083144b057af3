"""Loaders of published data sets, one file for each set."""
