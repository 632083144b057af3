"""Evaluation: generate, judge, score, and summarise with intervals."""
