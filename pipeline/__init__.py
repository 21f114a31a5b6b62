"""Two stages that meet in a store.

    STAGE ONE, once                                       STAGE TWO, many times
    data -> replayable view -> teacher -> encode -> STORE -> slab -> dense signal -> loss -> student

``pipeline.cache_teacher`` runs the teacher and writes its compressed answers; ``pipeline.train_student``
trains students from them. The stages never import each other: what they share is the data
(``pipeline.datasets``), the models (``pipeline.models``), the views (``pipeline.views``), the encoding
(``pipeline.encoding``) and the store itself (``stores``).
"""
