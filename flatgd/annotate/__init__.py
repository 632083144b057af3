"""People compare two models' replies side by side: what they are asked, what they answered."""
