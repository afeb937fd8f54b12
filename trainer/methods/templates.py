"""Captions for pictures of a thing, or in a style, that has a new word; {} is where the word goes."""

from __future__ import annotations

OBJECT_TEMPLATES = (
    "{}",
    "a {}",
    "one {}",
    "this is a {}",
    "a photo of {}",
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a photo of my {}",
    "a good photo of a {}",
    "a poor photo of a {}",
    "a sharp photo of the {}",
    "a blurred photo of the {}",
    "a bright photo of a {}",
    "a dark photo of a {}",
    "a close-up of a {}",
    "a {} seen from near",
    "a {} seen from afar",
    "a photo of a clean {}",
    "a photo of a worn {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a picture of a {}",
    "a picture of the {}",
    "a picture with a {} in it",
    "a cropped picture of a {}",
    "a drawing of a {}",
)
"""For a thing, a person or an animal."""

STYLE_TEMPLATES = (
    "{}",
    "in the style of {}",
    "a picture in the style of {}",
    "a painting in the style of {}",
    "a drawing in the style of {}",
    "a sketch in the style of {}",
    "a rendering in the style of {}",
    "an illustration in the style of {}",
    "a work of art in the style of {}",
    "a small painting in the style of {}",
    "a large painting in the style of {}",
    "a bright painting in the style of {}",
    "a dark painting in the style of {}",
    "a detail of a painting in the style of {}",
    "a fine painting in the style of {}",
    "a rough painting in the style of {}",
    "a quiet picture in the style of {}",
    "a lively picture in the style of {}",
    "a picture by {}",
)
"""For a style or an artist's hand."""
