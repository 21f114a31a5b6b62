"""What is written beside stores: JSON of finite numbers, and versions.

`strict_json` reads and writes it, `versions` says what wrote it. May import nothing of ours.
"""
