"""Pages in a browser: the annotators' and the chat's. Rendered here, nothing fetched elsewhere."""
