"""Files on disk: whole or absent, records, tables."""
