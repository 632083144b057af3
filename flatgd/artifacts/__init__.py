"""What a run writes: paths, rows, manifests, and how a finished run is read."""
