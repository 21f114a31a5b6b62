"""Opening a store, reading rows that were checked, verifying every byte. May import `format` and the loose files.

reader, teacher, cells, blocks, gather      a store, a teacher, its cells, values, rows in any order
rows, tails, verify         what rows must be; every byte looked at
lineage, memory             where a store comes from; how much memory there is
"""
