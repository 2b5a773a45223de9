"""What travels on the bus. Importing this package defines every message type."""

from schemas.events import autotune, base, dataset, index, promotion

__all__ = ["autotune", "base", "dataset", "index", "promotion"]
