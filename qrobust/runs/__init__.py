"""A run: its folder, its stages and their order, and what is known of it before it begins."""
