"""The actors. One folder each: core.py decides (pure), its shells load, decide, save and return messages."""
