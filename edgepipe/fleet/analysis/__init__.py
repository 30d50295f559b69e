"""What a fleet run shows: its trials as a table, boards against each other, and two runs against each other."""
