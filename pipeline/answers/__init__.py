"""What one teacher, or several, say about rows of a view: decoded from a store, the same for all who ask.

May import `encoding`, `datasets`, `views`, `alignment` and `stores`; never a stage.
"""
