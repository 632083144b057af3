"""Files on disk: atomic writes, records, tables."""
