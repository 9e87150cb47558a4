"""Models and data that others publish: where they are, who grants them, and downloads of what is open."""
