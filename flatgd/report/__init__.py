"""The report: reads the files of a run, never imports torch."""
