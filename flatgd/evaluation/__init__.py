"""From scores to metrics with intervals. Imports numpy and scipy, never torch."""
