"""How fast, how large and how robust artifacts are, side by side in one run. Torch is not needed."""
