"""Studies of finished runs: flatness, durability, generalisation."""
