"""Judges of toxicity: linear, trained here, or any classifier; calibrated on labelled rows."""
