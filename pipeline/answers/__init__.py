"""What one teacher, or several, say about rows of a view: decoded from a store, the same for all who ask.

`open_answers` (opening.py) gives `StoredAnswers` of one teacher or an `Ensemble`, which both are `Answers`
(interface.py). Slabs are a cache of rows that are ready to decode: they change how long a call takes, no more.

May import `encoding`, `datasets`, `views`, `alignment` and `stores`; never a stage.
"""
