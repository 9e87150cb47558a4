"""From trained parameters to answers."""
