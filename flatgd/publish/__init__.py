"""Trained models for others: packages, model cards, the hub."""
