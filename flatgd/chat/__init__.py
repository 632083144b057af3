"""To talk to models by hand: in the terminal or in a browser, one or several side by side."""
