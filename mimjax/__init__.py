"""mimjax: masked image modeling for vision transformers in JAX."""

__version__ = "0.1.0"
