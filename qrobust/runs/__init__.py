"""A run: its folder, its stages, and what is known of it before it begins."""
