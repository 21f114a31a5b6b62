"""What one teacher, or several, say about rows of a view: decoded from a store, the same for all who ask.

`open_answers` (opening.py) gives `StoredAnswers` of one teacher or an `Ensemble`, which both are `Answers`
(interface.py). Slabs are a cache of rows that are ready to decode: they change how long a call takes, no more.

    interface, opening          what is asked; answers by their text
    stored, stored_batch, ensemble, side_by_side    one teacher, the rows of a batch, several teachers
    teacher_rows, records, prepared, slab, slab_file    rows that are ready to decode
    grouping, dataset           the order of rows that do not fit; a store's examples for one's own loop
    label_map                   crops, answered from the map of their picture
    against_labels, guessed_labels, pass_rates, tail_warnings   what labels say of answers, and what users should know

May import `encoding`, `datasets`, `views`, `alignment` and `stores`; never a stage.
"""
