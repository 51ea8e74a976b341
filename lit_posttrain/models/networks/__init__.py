"""The networks that are trained or compared with, around a transformers model."""
