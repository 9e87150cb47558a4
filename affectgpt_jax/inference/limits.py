"""What an answer is not."""

LIMITS = "A statistical guess at how a clip may come across: not a diagnosis, and no basis for decisions about people."
"""Goes with every answer about a clip, whatever object or record holds it."""
