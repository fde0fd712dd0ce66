"""A deployed file under attack: white-box on what was shipped, not on what was trained."""
