"""Opening a store, reading rows that were checked, verifying every byte. May import `format` and the loose files."""
