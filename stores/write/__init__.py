"""Creating stores, writing cells, building stores out of stores. May import `format`, `read` and the loose files.

building, create, writer    alone and out of sight; what is written once; cells
merge, extend, gathered, match, link        stores out of stores: which rows, and files with one name more
"""
