"""Pages in a browser, for annotators and for the chat. Nothing is loaded from other sites."""
