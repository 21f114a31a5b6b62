"""What a store may hold: its arrays, documents, and the layout of its files. May import numpy and `files`.

`schema` has the arrays, `attributes` and `documents` the JSON, read by `plain_json`; `layout` cuts arrays into files,
`address` spells places.
"""
