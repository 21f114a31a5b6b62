"""Creating stores, writing cells, building stores out of stores. May import `format`, `read` and the loose files."""
