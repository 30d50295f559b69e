"""edgepipe: compress a trained model, export it, prove it, push it to a small board and measure it there."""

__version__ = "0.1.0"
