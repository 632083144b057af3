"""Data sets: loaders, canned replies, votes, and the sets of a recipe."""
