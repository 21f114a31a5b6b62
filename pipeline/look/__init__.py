"""What people read: descriptions, cards, differences, plots, the report page. May import all but commands."""
