"""Annotators compare two models' replies side by side: studies, the page, votes, the tally."""
