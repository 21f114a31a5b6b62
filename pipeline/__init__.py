"""Two stages that meet in a store.

    STAGE ONE, once                                       STAGE TWO, many times
    data -> replayable view -> teacher -> encode -> STORE -> slab -> dense answers -> loss -> student

`cache_teacher` runs the teacher and writes its compressed answers; `train_student` trains students from them. The
stages never import each other. Rooms that both may use stand below them:

    datasets, views, models       examples, what is shown of them, networks
    encoding                      what a row stores, and how it becomes logits again
    alignment, folds              row i is example i; which teacher may answer it
    answers                       what one teacher, or several, say about rows of a view
    fit, processes                the one training loop; who runs it
    files, metrics, domains, described, spelling, user_code

and above them what people use: `use_student`, `generations`, `look`, `exchange`, `commands`. What a room may import is
held by tests/test_imports.py; each room's docstring says which files it has.
"""
