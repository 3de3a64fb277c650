"""Recipes: a typed TOML file becomes the objects of a run."""
