"""Data: one file a data set, canned replies, mixtures, batches."""
