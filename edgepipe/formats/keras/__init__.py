"""What TensorFlow trains: Keras files, SavedModel folders and frozen graphs. Inputs only."""
