"""Chat with models by hand: in the terminal or in a browser, with one or several side by side."""
