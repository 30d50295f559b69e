"""The frozen graph that every TensorFlow model becomes on its way to the other formats."""
