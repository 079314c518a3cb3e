"""What one picture shows, as numbers, outlines and features; of a catalogue, what they are held against."""

from .foreground import MEASURES, Look, look, measure, product_mask, to_rgb

__all__ = ["MEASURES", "Look", "look", "measure", "product_mask", "to_rgb"]
