"""The demo: the main job on the documentation of the Python packages installed here."""
