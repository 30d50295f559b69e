"""Language models: read from GGUF, exported with a key-value cache, quantised, and measured token by token."""
