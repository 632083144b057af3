"""Loaders of published data sets, one file each."""
