"""What is written beside stores: files that are whole or absent, JSON of finite numbers, and versions.

May import `logitbank.stores.files`, nothing else of ours.
"""
