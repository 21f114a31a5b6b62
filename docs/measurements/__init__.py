"""Pages that report a measurement, and the scripts that measured two of them."""
