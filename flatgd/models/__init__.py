"""Language models: loaded, laid out, generated from, scored."""
