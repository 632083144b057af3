"""Studies of finished runs: how flat, how durable, how well it holds on what was not trained on."""
