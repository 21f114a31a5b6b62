"""Documentation pages and what generates them."""
