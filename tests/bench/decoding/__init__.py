"""Programs that decode the same prompt, each in the environment of its runtime."""
