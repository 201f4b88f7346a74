"""Programs compiled ahead of time for devices that are not at hand, and what they would take."""
