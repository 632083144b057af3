"""Recipes: their fields, files and column names."""
