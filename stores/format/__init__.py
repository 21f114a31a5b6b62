"""What a store may hold: its arrays, documents, and the layout of its files. May import numpy and `files`."""
