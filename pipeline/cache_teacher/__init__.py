"""STAGE ONE: run the teacher once and write its answers to a store.

    settings            what a pass, folds and the running of a network may be told
    train               teachers of our own
    teachers/           who can answer
    sound, sample       answers that can be learnt from; the few rows that decide how they are kept
    picked              some answers, of a few positions of each example where there are many
    asked, begin        what a pass was asked to keep; the store and the teacher in it
    cells, passes       rows of a cell, encoded; cells claimed and written one by one, and the last word
    run, extend, trial  a whole pass; more views of one; what one will cost
    near                which examples a teacher is asked about
    opening, on_ray     who answers, from a pass's description; a pass on a Ray cluster
    recompute           whether a store's answers are its teacher's
    embedding, fidelity the features that are kept; what survives an encoding, and which is good enough
    shipping            a pass into a bucket
    nested              features of two teachers in one
    sums, summary, progress   what is said of the answers, and while they are written

May import the rooms below both stages, never `train_student`.
"""
