"""Batches of uint8 crops: where samples come from, how they are read, cropped and changed."""
