"""Trained models handed on: packages, model cards, the hub."""
