"""The words everyone shares: names, events, documents, HTTP bodies. Imports msgspec only."""
