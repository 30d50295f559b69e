"""Speed figures, as ratios measured side by side in one run. `make bench` prints them; tests never assert seconds."""
