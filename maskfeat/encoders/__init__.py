"""Encoders: the vision transformer, MViTv2, and any ViT with timm's attributes."""
