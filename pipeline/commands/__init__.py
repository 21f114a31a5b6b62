"""The command line: one file for each group of commands, and the options that they share.

    teacher, cache, look, share, exchange, student, generations, use, parts, demo   the commands
    options, renamed            what they share; old spellings, refused with the new ones

A command parses, looks up, calls the library and reports. Heavy imports stay inside the commands, so that ``--help``
answers at once. May import everything; nothing imports it but `cli`.
"""
